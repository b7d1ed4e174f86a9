# The daemon under its unit: how little that lets it do, that nothing of it is too much, and what mdevd makes of a state folder that
# somebody has been at.

# --- the unit, with something changed for one scenario

drop_in=/run/systemd/system/mdevd.service.d/scenario.conf

# unit_with LINE...: from the next start on, the unit has these lines too, until the scenario ends.
unit_with() {
  trap 'as_shipped >/dev/null 2>&1; kill $(jobs -p) 2>/dev/null' EXIT
  mkdir -p "${drop_in%/*}"
  printf '%s\n' '[Service]' "$@" >$drop_in
  must systemctl daemon-reload
  systemctl reset-failed mdevd 2>/dev/null # too many starts in a short time are not what is tested
}

as_shipped() {
  rm -rf "${drop_in%/*}"
  must systemctl daemon-reload
  systemctl reset-failed mdevd 2>/dev/null
  must systemctl restart mdevd
}

# run_with LINE...: mdevd runs with these lines.
run_with() {
  unit_with "$@"
  must systemctl restart mdevd
}

# without_capability NAME [LINE...]
without_capability() {
  run_with "CapabilityBoundingSet=~$1" "AmbientCapabilities=~$1" "${@:2}"
}

# process_field PID FIELD: of /proc/PID/status.
process_field() { sed -n "s/^$2:[[:space:]]*//p" "/proc/$1/status"; }

journal_since() { journalctl -q -o cat -u mdevd --since "@$1"; }

# --- what it lets mdevd do

scenario_sandbox_exposure() {
  [ -z "$(systemctl show -P DropInPaths mdevd)" ] || fail "this is not the unit as it is shipped"
  must systemctl start mdevd
  must systemd-analyze security --no-pager mdevd
  say "$(grep Overall <<<"$out")"
  must systemd-analyze security --no-pager --threshold=22 mdevd
}

scenario_sandbox_rights() {
  local pid rights=0000000000081004 # of linux/capability.h: 2 DAC_READ_SEARCH, 12 NET_ADMIN, 19 SYS_PTRACE
  must systemctl start mdevd
  pid=$(mdevd_pid)
  [ "$(process_field "$pid" CapEff)" = $rights ] || fail "mdevd has the capabilities $(process_field "$pid" CapEff)"
  [ "$(process_field "$pid" CapBnd)" = $rights ] || fail "it can have the capabilities $(process_field "$pid" CapBnd)"
  [ "$(process_field "$pid" CapAmb)" = 0000000000000000 ] || fail "it passes on $(process_field "$pid" CapAmb)"
  [ "$(process_field "$pid" NoNewPrivs)" = 1 ] || fail "it may get new privileges"
  [ "$(process_field "$pid" Seccomp)" = 2 ] || fail "its system calls are not filtered"
}

# note_writers PID TRACER: prints, for each writer that this mdevd starts while the tracer lives, its verb and rights.
note_writers() {
  local pid verb rights
  while kill -0 "$2"; do
    for pid in $(pgrep -P "$1"); do
      verb=$(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -d' ' -f2)
      rights=$(sed -nE 's/^(CapPrm|CapEff|CapAmb|NoNewPrivs|Seccomp):[[:space:]]*//p' "/proc/$pid/status" | tr '\n' ' ')
      [ -z "$verb" ] || [ -z "$rights" ] || echo "$verb $rights"
    done
    sleep 0.1
  done 2>/dev/null | sort -u
}

# A writer has no right at all, but for one that sets up a VF. Each is kept for a second when it is about to exit, and looked at.
scenario_sandbox_writers() {
  local pid tracer notes vf uuid=c2177883-f1bb-47f0-914d-32a22e3a8820 none=0000000000000000 network=0000000000001000
  must hostdevctl vfs $igb_pf 1
  vf=$(vf_of $igb_pf 0)
  pid=$(mdevd_pid)
  strace -f -qq -o /dev/null -e trace=exit_group -e inject=exit_group:delay_enter=1000000 -p "$pid" 2>/tmp/strace.err &
  tracer=$!
  eventually grep -q "^TracerPid:[[:space:]]*$tracer" "/proc/$pid/status"
  note_writers "$pid" $tracer >/tmp/writers &
  notes=$!
  must hostdevctl configure "$vf" mac=$mac
  must hostdevctl create mtty-1 --uuid $uuid
  must hostdevctl vfs $igb_pf 0
  kill $tracer
  wait $tracer $notes
  must hostdevctl remove $uuid
  echo 'verb, permitted, effective and ambient capabilities, NoNewPrivs, Seccomp:'
  diff -b - /tmp/writers <<WRITERS || fail "the writers had other rights"
vf $network $network $network 1 2
write $none $none $none 1 2
WRITERS
}

# --- what it must let mdevd do

# Who holds a device, also when AppArmor keeps its QEMU in.
scenario_sandbox_holders() {
  local device
  vfio
  function_facts $nic >/tmp/before
  mdev=$(derived_uuid box1 tty0)
  define box1 request='name="tty0" type="mtty-1"' hostdev="$mdev" \
    request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic no)"
  start box1
  for device in "$mdev" $nic; do
    must_print 'qemu' hostdevctl show "$device"
    matches "$(qemu_pid box1)" || fail "hostdevctl show $device does not name box1's QEMU"$'\n'"$out"
  done
  must_fail_with 'in use by qemu.*stop that first' hostdevctl release --force "$(uuid_of box1)"
  runs_with box1 "$mdev"
  has_function box1 $nic
  destroy box1
  released box1 "$mdev"
  as_before $nic /tmp/before
}

# Without the right to see who holds a device it is not known that nobody does: nothing is removed, not even when the VM has gone,
# and all is as soon as it can be seen. With ProtectProc=invisible those processes are not even listed.
scenario_sandbox_blind() {
  local lost
  define_tty blind1
  start blind1
  for lost in 'CAP_DAC_READ_SEARCH' 'CAP_SYS_PTRACE' 'CAP_SYS_PTRACE ProtectProc=default' 'CAP_SYS_PTRACE ProtectProc=invisible'; do
    # shellcheck disable=SC2086 # one or two words
    without_capability $lost
    must_fail_with 'in use by unknown' hostdevctl release --force "$(uuid_of blind1)"
    mdev_exists "$mdev" || fail "it was removed without $lost"
  done
  runs_with blind1 "$mdev"
  destroy blind1
  eventually sh -c "[ \"\$(jq -r .state $(claim_file blind1))\" = failed ]"
  must_print 'unknown' hostdevctl status
  mdev_exists "$mdev" || fail "it was removed although nobody knew who held it"
  as_shipped
  released blind1 "$mdev"
}

# Each path that the unit lets it write to is needed, and where it is not there the error says so.
scenario_sandbox_writable_paths() {
  local paths begin
  vfio
  function_facts $nic >/tmp/before
  paths=$(systemctl show -P ReadWritePaths mdevd)
  [ "$paths" = '/sys/devices /sys/bus/pci' ] || fail "each writable path needs its part in this scenario; they are '$paths'"

  run_with ReadWritePaths= ReadWritePaths=/sys/bus/pci
  define_tty ro1
  must_fail_with "cannot write '$mdev' to /sys/.*/create: EROFS" virsh start ro1
  released ro1 "$mdev"
  must_fail_with 'EROFS' hostdevctl vfs $igb_pf 1
  must_fail_with 'EROFS' hostdevctl bind $nic
  eventually no_claims
  as_before $nic /tmp/before

  run_with ReadWritePaths= ReadWritePaths=/sys/devices
  define ro2 request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic no)"
  must_fail_with "cannot write '$nic' to .*unbind: EROFS" virsh start ro2
  released ro2
  as_before $nic /tmp/before
  start ro1
  destroy ro1
  released ro1 "$mdev"

  begin=$(date +%s)
  unit_with RuntimeDirectory=
  must_fail_with 'failed' systemctl restart mdevd
  must journal_since "$begin"
  matches '/run/mdevd/lock: cannot open it: EROFS' || fail "the journal does not say what is wrong"$'\n'"$out"
  must_fail_with 'mdevd' virsh start ro1
  as_shipped
  released ro1 "$mdev"
}

# CAP_NET_ADMIN is for the settings of VFs, and for nothing else.
scenario_sandbox_without_net_admin() {
  local vf
  vfio
  must hostdevctl vfs $igb_pf 1
  vf=$(vf_of $igb_pf 0)
  eventually test -e "/sys/bus/pci/devices/$vf/net"
  function_facts "$vf" >/tmp/before
  without_capability CAP_NET_ADMIN
  define cap1 request="name=\"nic0\" address=\"$vf\" mac=\"$mac\"" device="$(hostdev_pci "$vf" no)"
  must_fail_with "$mac.*EPERM" virsh start cap1
  released cap1
  as_before "$vf" /tmp/before
  define cap2 request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic no)"
  start cap2
  has_function cap2 $nic
  destroy cap2
  released cap2
  as_shipped
  must hostdevctl vfs $igb_pf 0
}

# --- the state folder

# What is not root's own plain file is moved aside, unread and unfollowed, and costs the others nothing.
scenario_sandbox_state_files() {
  local begin name secret=/var/secret sum
  define_tty state1
  start state1
  must find /run/mdevd ! -user root -o -type f ! -perm 600 -o -type d ! -perm 700
  [ -z "$out" ] || fail "not root's alone:"$'\n'"$out"
  must systemctl stop mdevd
  (umask 077 && cp "$(claim_file state1)" $secret)
  sum=$(md5sum <$secret)
  begin=$(date +%s)
  ln -s $secret "$claims/$(uuid_of link).json"
  cp $secret "$claims/$(uuid_of foreign).json"
  chown nobody "$claims/$(uuid_of foreign).json"
  mkfifo "$claims/$(uuid_of pipe).json"
  ln -s $secret "$claims/.$(uuid_of state1).json.tmp"
  ln -s $secret "/run/mdevd/released/$(uuid_of state1)"
  ln -sf $secret /run/mdevd/manage
  must systemctl start mdevd
  for name in link foreign pipe; do
    eventually test -e "/run/mdevd/quarantine/$(uuid_of $name).json.1" -o -L "/run/mdevd/quarantine/$(uuid_of $name).json.1"
  done
  eventually test -L "/run/mdevd/quarantine/taken.$(uuid_of state1).1.1"
  must journal_since "$begin"
  matches "$(uuid_of link)\.json: it could not be read and was moved to .*: ELOOP" || fail "no word of the link"$'\n'"$out"
  matches "$(uuid_of foreign)\.json: .*it belongs to uid 65534, not to uid 0" || fail "no word of the foreign file"$'\n'"$out"
  [ "$(ls $claims)" = "$(uuid_of state1).json" ] || fail "the claims are $(ls $claims)"
  [ -f /run/mdevd/manage ] && [ ! -L /run/mdevd/manage ] || fail "/run/mdevd/manage is still a link"
  runs_with state1 "$mdev"
  destroy state1
  released state1 "$mdev"
  [ "$(md5sum <$secret)" = "$sum" ] || fail "what the links led to was written to"
  rm -r $secret /run/mdevd/quarantine/*
}

# A lock and a folder that lead elsewhere: mdevd does not write, or does not start, and says what to do.
scenario_sandbox_state_folders() {
  local begin elsewhere=/var/elsewhere uuid=c2177883-f1bb-47f0-914d-32a22e3a8821
  trap 'rm -rf /run/mdevd; systemctl reset-failed mdevd; systemctl restart mdevd' EXIT
  mkdir -m 700 $elsewhere
  must systemctl start mdevd
  ln -s $elsewhere/lock /run/mdevd/busy/create.$uuid.mtty
  must_fail_with 'ELOOP' hostdevctl create mtty-1 --uuid $uuid
  eventually no_claims
  must systemctl stop mdevd
  rm -r /run/mdevd/busy/create.$uuid.mtty $claims
  ln -s $elsewhere $claims
  begin=$(date +%s)
  must_fail_with 'failed' systemctl start mdevd
  must journal_since "$begin"
  matches '/run/mdevd/claims: it is a symbolic link; remove it' || fail "the journal does not say what is wrong"$'\n'"$out"
  # it would be tried again, and in the middle of what follows
  must systemctl stop mdevd
  rm -r /run/mdevd
  ln -s $elsewhere /run/mdevd
  must systemctl reset-failed # of all: one that is stopped may be forgotten, and then cannot be named
  must_fail_with 'failed' systemctl start mdevd
  [ -z "$(ls -A $elsewhere)" ] || fail "mdevd has followed a link: $(ls -A $elsewhere)"
}

# --- the watchdog

restarted_since() { [ "$(mdevd_pid)" != "$1" ] && mdevd_is active; }

# An engine that does not turn any more is started again, and knows its claims.
scenario_sandbox_watchdog() {
  local begin pid
  define_tty dog1
  start dog1
  run_with WatchdogSec=2
  pid=$(mdevd_pid)
  begin=$(date +%s)
  must kill -STOP "$pid"
  eventually 60 restarted_since "$pid"
  must journalctl -q -o cat -u mdevd --since "@$begin"
  matches 'watchdog timeout' || fail "it was not the watchdog"$'\n'"$out"
  must_print 'dog1' hostdevctl claims
  runs_with dog1 "$mdev"
  destroy dog1
  released dog1 "$mdev"
}

last_sign_of_life() { systemctl show -P WatchdogTimestampMonotonic mdevd; }
other_sign_of_life() { [ "$(last_sign_of_life)" != "$1" ]; }
scan_threads() { [ "$(cat "/proc/$1"/task/*/comm | grep -cx scan)" = "$2" ]; }

# A read that does not come back from the kernel is no reason to kill mdevd.
scenario_sandbox_watchdog_and_a_read() {
  local pid scan tracer sign begin calls=openat,getdents64,readlink,statx,read
  run_with WatchdogSec=4
  begin=$(date +%s)
  pid=$(mdevd_pid)
  scan=$(grep -lx scan "/proc/$pid"/task/*/comm | cut -d/ -f5)
  strace -qq -o /dev/null -e trace=$calls -e inject=$calls:delay_enter=600000000 -p "$scan" 2>/tmp/strace.err &
  tracer=$!
  eventually grep -q "^TracerPid:[[:space:]]*$tracer" "/proc/$pid/task/$scan/status"
  hostdevctl rescan >/tmp/rescan.out 2>&1 &
  eventually scan_threads "$pid" 2 # the one that hangs, and one in its place
  for _ in 1 2 3 4; do # there is half of WatchdogSec= between two
    sign=$(last_sign_of_life)
    eventually other_sign_of_life "$sign"
  done
  [ "$(mdevd_pid)" = "$pid" ] || fail "mdevd was restarted: $(journal_since "$begin")"
  scan_threads "$pid" 2 || fail "the read came back too soon"
  must hostdevctl list
  kill $tracer
}

# --- the AppArmor profile that an administrator may put in force

profile=/usr/share/apparmor/extra-profiles/usr.libexec.mdevd.mdevd

scenario_sandbox_apparmor_profile() {
  local stranger
  [ "$(cat /sys/module/apparmor/parameters/enabled)" = Y ] || { say "LEFT OUT: this guest has no AppArmor"; return; }
  vfio
  function_facts $nic >/tmp/before
  trap 'apparmor_parser -R $profile; apparmor_parser -R /tmp/stranger; kill $(jobs -p); systemctl restart mdevd' EXIT
  must apparmor_parser -r $profile
  must systemctl restart mdevd
  must_print '^mdevd \(enforce\)' cat "/proc/$(mdevd_pid)/attr/current"
  mdev=$(derived_uuid aa1 tty0)
  define aa1 request='name="tty0" type="mtty-1"' hostdev="$mdev" \
    request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic no)"
  start aa1
  must_print 'qemu' hostdevctl show "$mdev"
  must_fail_with 'in use by qemu' hostdevctl release --force "$(uuid_of aa1)"
  destroy aa1
  released aa1 "$mdev"
  as_before $nic /tmp/before
  must hostdevctl doctor
  must hostdevctl vfs $igb_pf 1
  must hostdevctl configure "$(vf_of $igb_pf 0)" mac=$mac
  must hostdevctl vfs $igb_pf 0
  out=$(journalctl -q -k -o cat | grep 'apparmor="DENIED".*profile="mdevd"')
  [ -z "$out" ] || fail "the profile lacks something"$'\n'"$out"
  # A process that lets nobody but its like look at it, as Docker's containers: whether it holds a device is not known.
  echo 'abi <abi/3.0>, profile stranger { file, signal, ptrace (read, readby) peer=stranger, }' >/tmp/stranger
  must apparmor_parser -r /tmp/stranger
  must hostdevctl create mtty-1 --uuid "$mdev"
  aa-exec -p stranger -- sleep infinity &
  stranger=$!
  eventually grep -q stranger /proc/$stranger/attr/current
  must_fail_with "in use by unknown .*sleep \(pid $stranger\)" hostdevctl remove "$mdev"
  mdev_exists "$mdev" || fail "it was removed"
  kill $stranger
  wait $stranger
  must hostdevctl remove "$mdev"
  eventually no_claims
}
