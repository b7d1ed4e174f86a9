#!/bin/bash
# make demo: the main job of mdevd as a person would do it, on a simulated host. No hardware, no libvirt, no root needed.
#
# Everything is real except the kernel, libvirt and QEMU: the daemon, its client and libvirt's hook program run as they are
# installed, on a bus of their own, over a FUSE file system that behaves like sysfs. Nothing outside a temporary folder is
# touched. It checks what it shows: it fails when anything is not as it should be.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$HOME/.cargo/bin # where rustup puts cargo

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' red=$'\e[31m' plain=$'\e[0m'; else bold='' red='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
die() { # what is not as it should be
  printf '\n%sdemo: NOT as it should be: %s%s\n' "$red" "$*" "$plain" >&2
  tail -n 40 "$dir"/*.log >&2 || true # what mdevd and the others said
  exit 1
}
# A command as a person would type it, and what it says.
run() {
  local word typed=
  for word in "$@"; do
    case $word in *[!A-Za-z0-9_./:=,-]*) typed+=" '$word'" ;; *) typed+=" $word" ;; esac
  done
  printf '$%s\n' "$typed"
  "$@" 2>&1 || die "'$*' failed with status $?"
}
holds() { # WHAT JQ-CONDITION COMMAND...: the condition on what the command prints as JSON
  "${@:3}" | jq -e "$2" >/dev/null || die "$1"
}

say "Building (a debug build: quicker to make, slower to run) …"
target=${CARGO_TARGET_DIR:-target}
cargo build --locked --target-dir "$target" --workspace --bins
begin=$SECONDS
PATH=$(realpath "$target")/debug:$PATH

# Whatever happens, nothing is left of what follows.
dir=$(mktemp -d "${TMPDIR:-/tmp}/mdevd-demo.XXXXXX")
children=()
clean_up() {
  local n
  # Last first: the daemon and its host before their bus.
  for ((n = ${#children[@]} - 1; n >= 0; n--)); do
    kill "${children[n]}" 2>/dev/null || true
    wait "${children[n]}" 2>/dev/null || true
  done
  rm -rf --one-file-system "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Waits for something that one of our own processes is about to do.
await() { # WHAT PID COMMAND...
  local deadline=$((SECONDS + 60))
  until "${@:3}" >/dev/null 2>&1; do
    kill -0 "$2" 2>/dev/null || die "$1 ended before it was ready"
    [ $SECONDS -lt $deadline ] || die "$1 was not ready in a minute"
    sleep 0.05
  done
}

# ---------------------------------------------------------------------------------------------------------------------------
say "A private bus, and a simulated host with two cards of four vGPUs each and one parent that is not PCI.
mdevd runs over it as it does over a real one: --sys, --proc, --etc and --run say where to look."
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$dir/bus
dbus-daemon --session --nofork --nopidfile --address="$DBUS_SYSTEM_BUS_ADDRESS" 2>"$dir/bus.log" &
children+=($!)
await 'the private bus' $! test -S "$dir/bus"
if [ "$(id -u)" != 0 ]; then
  echo "(You are not root: a stand-in for polkit, on this bus only, says yes to whatever mdevd asks it.)"
  fakepolkit "$DBUS_SYSTEM_BUS_ADDRESS" >"$dir/polkit.out" 2>"$dir/polkit.log" &
  children+=($!)
  await 'the stand-in for polkit' $! test -s "$dir/polkit.out"
fi
host=$dir/host
mkdir "$host"
# mtty is the kernel's own sample driver.
fakehost "$host" --parent 0000:41:00.0:nvidia-63=4,nvidia-64=2 --numa 0 --driver nvidia --exclusive \
  --parent 0000:c1:00.0:nvidia-63=4,nvidia-64=2 --numa 1 --driver nvidia --exclusive --mtty \
  --daemon "$(type -P mdevd)" >/dev/null 2>"$dir/mdevd.log" &
children+=($!)
await mdevd $! hostdevctl status
export MDEVD_RUN_DIR=$host/run # for the hook program, which libvirt would run without it
in_kernel() { ls -A "$host/sys/bus/mdev/devices" | wc -l; } # how many devices there are

run hostdevctl list
run hostdevctl types
holds 'three parents are there' 'map(.name) == ["0000:41:00.0", "0000:c1:00.0", "mtty"]' hostdevctl list --json

# ---------------------------------------------------------------------------------------------------------------------------
say "What would a VM get that asks for a vGPU of the type nvidia-63, and why not something else?"
run hostdevctl explain nvidia-63
holds 'exactly one card is chosen' 'map(select(.verdict == "chosen")) | length == 1' hostdevctl explain nvidia-63 --json

say "A VM says what it needs in its XML. This prints the two pieces to put there (virsh edit vm1), before anything exists:"
uuid_of() { printf '00000000-0000-4000-8000-00000000000%d' "$1"; } # of the VM of this number
run hostdevctl xml --domain "$(uuid_of 1)" --request name=gpu0,type=nvidia-63
define() { # N: the VM's XML, with those two pieces in their places
  local pieces metadata
  pieces=$(hostdevctl xml --domain "$(uuid_of "$1")" --request name=gpu0,type=nvidia-63 2>/dev/null)
  metadata=${pieces%%</metadata>*}
  cat >"$dir/vm$1.xml" <<XML
<domain type='kvm'>
<name>vm$1</name>
<uuid>$(uuid_of "$1")</uuid>
$metadata</metadata>
<memory unit='GiB'>4</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices>
${pieces#*</metadata>}
</devices>
</domain>
XML
}
for n in {1..9}; do define "$n"; done

# libvirt runs the hook in the folder /, with these arguments and the whole XML on its standard input.
hook() { # N OP SUBOP EXTRA
  printf '$ mdevd-hook vm%s <vm%s.xml\n' "$*" "$1"
  mdevd-hook "vm$1" "${@:2}" <"$dir/vm$1.xml" || return
}

say "virsh start vm1. Before libvirt looks at any device it runs its hooks; this is ours:"
hook 1 prepare begin - || die "prepare of vm1 was refused"
run hostdevctl list
run hostdevctl show vm1
device=$(hostdevctl claims --json | jq -r '.[0].grants[0].uuid')
grep -q "<address uuid='$device'/>" "$dir/vm1.xml" || die "vm1 was given $device, which is not the device in its XML"
[ "$(basename "$(readlink "$host/sys/bus/mdev/devices/$device/mdev_type")")" = nvidia-63 ] ||
  die "the kernel does not have $device as an nvidia-63"
[ "$(in_kernel)" = 1 ] || die "there is not exactly one device in the kernel"

say "The device is there, in the kernel's own words, and this is the element that gives it to the VM:"
run ls "$host/sys/bus/mdev/devices"
run hostdevctl xml "$device"
hostdevctl xml "$device" | grep -q "<address uuid='$device'/>" || die "the XML of $device does not name it"

say "Seven more VMs start; mdevd decides which card has room."
for n in {2..8}; do hook "$n" prepare begin - || die "prepare of vm$n was refused"; done
run hostdevctl list
run hostdevctl claims
holds 'eight claims are ready' 'length == 8 and all(.state == "ready")' hostdevctl claims --json
for parent in 0000:41:00.0 0000:c1:00.0; do
  [ "$(cat "$host/sys/class/mdev_bus/$parent/mdev_supported_types/nvidia-63/available_instances")" = 0 ] ||
    die "$parent is not full"
done

say "Both cards are full. The ninth VM is refused, and whoever typed 'virsh start vm9' reads why:"
if hook 9 prepare begin - 2>"$dir/refusal"; then die "the ninth VM was not refused"; else status=$?; fi
cat "$dir/refusal"
[ $status = 1 ] || die "the refusal has the status $status and not 1"
for parent in 0000:41:00.0 0000:c1:00.0; do
  grep -q "$parent" "$dir/refusal" || die "the refusal does not say what is wrong with $parent"
done
# A refused start is ended by libvirt like any other, which frees nothing of anybody's.
hook 9 release end failed
[ "$(in_kernel)" = 8 ] || die "the refused VM changed which devices there are"
run hostdevctl explain nvidia-63

say "vm3 stops; the same VM that was just refused starts now."
hook 3 release end shutdown
hook 9 prepare begin - || die "prepare of vm9 was refused although vm3 has stopped"
[ "$(in_kernel)" = 8 ] || die "there are not eight devices again"
run hostdevctl show vm9

say "A device without a VM, by hand: on the parent that is not PCI, and gone again."
run hostdevctl create mtty-2 --label "for a test"
device=$(hostdevctl claims --json | jq -r '.[] | select(.owner_kind == "manual").grants[0].uuid')
[ -n "$device" ] || die "the device made by hand has no claim"
run hostdevctl show "$device"
run hostdevctl remove "$device"
[ "$(in_kernel)" = 8 ] || die "the device made by hand is not gone"

say "A VM that asks for nothing is none of mdevd's business: its hook does not even reach for the bus."
echo "<domain><name>plain</name><uuid>$(uuid_of 0)</uuid></domain>" >"$dir/plain.xml"
printf '$ %s\n' 'DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nowhere mdevd-hook plain prepare begin - <plain.xml'
DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nowhere mdevd-hook plain prepare begin - <"$dir/plain.xml" ||
  die "a VM without a request was refused"

say "All VMs stop, each for its own reason."
for n in 1 2 4 5; do hook "$n" release end shutdown; done
for n in 6 7; do hook "$n" release end destroyed; done
for n in 8 9; do hook "$n" release end crashed; done

say "The host is as it was: no device, no claim, nothing to complain about."
run hostdevctl list
run hostdevctl claims
run hostdevctl status
[ "$(in_kernel)" = 0 ] || die "there are devices left"
holds 'no claim is left' 'length == 0' hostdevctl claims --json
holds 'no problem is left' '.problems | length == 0' hostdevctl status --json
for folder in claims busy released quarantine; do
  [ -z "$(ls -A "$host/run/mdevd/$folder")" ] || die "files are left in /run/mdevd/$folder"
done

say "demo: everything was as it should be, in $((SECONDS - begin)) s. On a real host: README.md, 'The first ten minutes'."
