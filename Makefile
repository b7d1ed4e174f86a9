# Thin on purpose: every target calls cargo or a script.
#
#   make demo      shows the main job on a simulated host; nothing has to be there but apt or dnf
#   make check     everything that is tested, the real-kernel lab included
#   make bench     how long prepare and release take, beside a raw write and beside mdevctl; SAMPLES=50 for a quick one
#   make build     release build; then, as root: make install [DESTDIR=…] [prefix=/usr] [sysconfdir=/etc]
#   make deb       the Debian packages, in target/deb; make rpm, the RPMs, in target/rpm

prefix     ?= /usr
sysconfdir ?= /etc
bindir     ?= $(prefix)/bin
libexecdir ?= $(prefix)/libexec
datadir    ?= $(prefix)/share
unitdir    ?= $(prefix)/lib/systemd/system
mandir     ?= $(datadir)/man
docdir     ?= $(datadir)/doc/mdevd
# Debian's zsh looks for what packages bring elsewhere than zsh itself does.
zshdir     ?= $(datadir)/zsh/$(if $(wildcard /etc/debian_version),vendor-completions,site-functions)
hookdir     = $(sysconfdir)/libvirt/hooks/qemu.d

PROFILE ?= release
CARGO_TARGET_DIR ?= target
programs = $(CARGO_TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

# hostdevctl makes its own completions and man page; one for another machine cannot run here: name one that can.
HOSTDEVCTL ?= $(programs)/hostdevctl
sbom = $(programs)/sbom.cdx.json

CARGO ?= cargo
INSTALL ?= install
INSTALL_PROGRAM ?= $(INSTALL) -m755
INSTALL_DATA ?= $(INSTALL) -m644

# where rustup puts cargo
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: all build install uninstall deb rpm deps check demo bench fmt
all: build

build:
	$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@$(MAKE) --no-print-directory $(sbom)

# What the programs are made of.
$(sbom): Cargo.lock packaging/sbom Cargo.toml $(wildcard dbus-interfaces/Cargo.toml libvirt-hooks/*/Cargo.toml mdevd/*/Cargo.toml)
	mkdir -p $(@D)
	packaging/sbom >$@.new
	mv $@.new $@

# Each line: what installs it, from, to. The hook entry comes last, and only where what it runs is where it looks for it.
install: $(sbom)
	@test -x $(programs)/mdevd || { echo "make install: nothing is built; run \`make build\` first, as yourself" >&2; exit 1; }
	$(INSTALL_PROGRAM) -D $(programs)/mdevd $(DESTDIR)$(libexecdir)/mdevd/mdevd
	$(INSTALL_PROGRAM) -D $(programs)/hostdevctl $(DESTDIR)$(bindir)/hostdevctl
	$(INSTALL_PROGRAM) -D $(programs)/mdevd-hook $(DESTDIR)$(bindir)/mdevd-hook
	$(INSTALL) -d $(DESTDIR)$(unitdir) $(DESTDIR)$(datadir)/dbus-1/system-services
	sed 's|@libexecdir@|$(libexecdir)|g' packaging/systemd/mdevd.service >$(DESTDIR)$(unitdir)/mdevd.service
	sed 's|@libexecdir@|$(libexecdir)|g' packaging/dbus-1/system-services/org.mdevd1.service \
	    >$(DESTDIR)$(datadir)/dbus-1/system-services/org.mdevd1.service
	chmod 644 $(DESTDIR)$(unitdir)/mdevd.service $(DESTDIR)$(datadir)/dbus-1/system-services/org.mdevd1.service
	$(INSTALL_DATA) packaging/systemd/mdevd-ready.target $(DESTDIR)$(unitdir)/mdevd-ready.target
	$(INSTALL_DATA) -D -t $(DESTDIR)$(datadir)/apparmor/extra-profiles packaging/apparmor.d/usr.libexec.mdevd.mdevd
	$(INSTALL_DATA) -D packaging/dbus-1/system.d/org.mdevd1.conf $(DESTDIR)$(datadir)/dbus-1/system.d/org.mdevd1.conf
	$(INSTALL_DATA) -D -t $(DESTDIR)$(datadir)/dbus-1/interfaces dbus-interfaces/org.mdevd1.*.xml
	$(INSTALL_DATA) -D packaging/polkit-1/actions/org.mdevd1.policy $(DESTDIR)$(datadir)/polkit-1/actions/org.mdevd1.policy
	$(INSTALL_DATA) -D packaging/polkit-1/rules.d/50-mdevd.rules $(DESTDIR)$(docdir)/examples/50-mdevd.rules
	test -e $(DESTDIR)$(sysconfdir)/mdevd/mdevd.toml || $(INSTALL_DATA) -D packaging/mdevd.toml $(DESTDIR)$(sysconfdir)/mdevd/mdevd.toml
	packaging/man/build $(HOSTDEVCTL) $(libexecdir) $(DESTDIR)$(mandir)
	$(INSTALL) -d $(DESTDIR)$(datadir)/bash-completion/completions $(DESTDIR)$(datadir)/fish/vendor_completions.d $(DESTDIR)$(zshdir)
	$(HOSTDEVCTL) generate bash >$(DESTDIR)$(datadir)/bash-completion/completions/hostdevctl
	$(HOSTDEVCTL) generate fish >$(DESTDIR)$(datadir)/fish/vendor_completions.d/hostdevctl.fish
	$(HOSTDEVCTL) generate zsh >$(DESTDIR)$(zshdir)/_hostdevctl
	sed 's|@bindir@|$(bindir)|g' packaging/systemd/mdevd-metrics.service >$(DESTDIR)$(unitdir)/mdevd-metrics.service
	chmod 644 $(DESTDIR)$(unitdir)/mdevd-metrics.service $(DESTDIR)$(datadir)/bash-completion/completions/hostdevctl \
	    $(DESTDIR)$(datadir)/fish/vendor_completions.d/hostdevctl.fish $(DESTDIR)$(zshdir)/_hostdevctl
	$(INSTALL_DATA) packaging/systemd/mdevd-metrics.timer $(DESTDIR)$(unitdir)/mdevd-metrics.timer
	$(INSTALL_DATA) -D $(sbom) $(DESTDIR)$(docdir)/sbom.cdx.json
	$(INSTALL_DATA) -D docs/json.md $(DESTDIR)$(docdir)/docs/json.md
ifeq ($(bindir),/usr/bin)
	$(INSTALL) -m755 -D libvirt-hooks/qemu.d/mdevd $(DESTDIR)$(hookdir)/mdevd
else
	@echo '*** NO libvirt hook was installed. Its entry runs /usr/bin/mdevd-hook (AppArmor lets libvirtd run programs from there only,'
	@echo '*** and an entry that cannot run stops every VM), but these programs went to $(bindir).'
	@echo '*** VMs get no devices from mdevd until you run: make install prefix=/usr'
endif

# The hook entry goes first. Configuration and state stay.
uninstall:
	rm -f $(DESTDIR)$(hookdir)/mdevd
	rm -f $(DESTDIR)$(libexecdir)/mdevd/mdevd $(DESTDIR)$(bindir)/hostdevctl $(DESTDIR)$(bindir)/mdevd-hook
	rm -f $(DESTDIR)$(unitdir)/mdevd.service $(DESTDIR)$(unitdir)/mdevd-ready.target
	rm -f $(DESTDIR)$(datadir)/apparmor/extra-profiles/usr.libexec.mdevd.mdevd
	rm -f $(DESTDIR)$(datadir)/dbus-1/system-services/org.mdevd1.service
	rm -f $(DESTDIR)$(datadir)/dbus-1/system.d/org.mdevd1.conf $(DESTDIR)$(datadir)/dbus-1/interfaces/org.mdevd1.*.xml
	rm -f $(DESTDIR)$(datadir)/polkit-1/actions/org.mdevd1.policy $(DESTDIR)$(docdir)/examples/50-mdevd.rules
	rm -f $(DESTDIR)$(unitdir)/mdevd-metrics.service $(DESTDIR)$(unitdir)/mdevd-metrics.timer
	rm -f $(DESTDIR)$(mandir)/man1/hostdevctl.1 $(DESTDIR)$(mandir)/man5/mdevd.toml.5 $(DESTDIR)$(mandir)/man5/org.mdevd1.5
	rm -f $(DESTDIR)$(mandir)/man8/mdevd.8 $(DESTDIR)$(mandir)/man8/mdevd-hook.8 $(DESTDIR)$(docdir)/sbom.cdx.json
	rm -f $(DESTDIR)$(docdir)/docs/json.md
	rm -f $(DESTDIR)$(datadir)/bash-completion/completions/hostdevctl $(DESTDIR)$(zshdir)/_hostdevctl
	rm -f $(DESTDIR)$(datadir)/fish/vendor_completions.d/hostdevctl.fish
	-rmdir $(DESTDIR)$(libexecdir)/mdevd

deb rpm:
	packaging/build $@

# What building needs; says what it installs before it does.
deps:
	tests/deps

check:
	tests/deps tests
	tests/check $(PARTS)

demo: deps
	tests/demo.sh

bench: deps
	tests/bench/run $(SAMPLES)

fmt:
	$(CARGO) fmt --all
