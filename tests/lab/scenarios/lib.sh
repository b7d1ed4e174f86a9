# What every scenario can use: assertions, domains, and what is true of the host. Sourced, in the guest, by run-scenarios.
#
# A scenario is a function `scenario_NAME`, run in a subshell of its own. The first assertion that does not hold ends it.

claims=/run/mdevd/claims
hooks=/etc/libvirt/hooks/qemu.d

# --- assertions

fail() {
  echo "FAILED: $*"
  exit 1
}

# say WORDS...: printed below the scenario's line also when it passes.
say() { echo "# $*"; }

# must CMD...: CMD succeeds. What it printed, on both streams, is in $out.
must() {
  out=$("$@" 2>&1) || fail "exit status $? from: $*"$'\n'"$out"
}

# must_fail_with REGEX CMD...: CMD fails and what it printed matches REGEX (extended, any case). The text is in $out.
must_fail_with() {
  local regex=$1
  shift
  if out=$("$@" 2>&1); then fail "succeeded, but should fail with /$regex/: $*"$'\n'"$out"; fi
  matches "$regex" || fail "failed as it should, but not with /$regex/: $*"$'\n'"$out"
}

# must_exit STATUS CMD...: CMD ends with exactly this exit status.
must_exit() {
  local want=$1 got=0
  shift
  out=$("$@" 2>&1) || got=$?
  [ $got = "$want" ] || fail "exit status $got, not $want, from: $*"$'\n'"$out"
}

# must_print REGEX CMD...: CMD succeeds and what it printed matches.
must_print() {
  local regex=$1
  shift
  must "$@"
  matches "$regex" || fail "does not print /$regex/: $*"$'\n'"$out"
}

matches() { grep -qiE -- "$1" <<<"$out"; }

# eventually [SECONDS] CMD...: CMD succeeds within SECONDS (30, since two guests may share a busy machine); tried again and again
# until then.
eventually() {
  local limit=30 end
  case $1 in [0-9]*) limit=$1; shift ;; esac
  end=$((SECONDS + limit))
  until out=$("$@" 2>&1); do
    [ $SECONDS -lt $end ] || fail "not true within $limit s: $*"$'\n'"$out"
    sleep 0.1
  done
}

# within SECONDS CMD...: CMD succeeds and takes no longer than this.
within() {
  local limit=$1 begin=$EPOCHREALTIME ms
  shift
  must "$@"
  ms=$(((${EPOCHREALTIME/./} - ${begin/./}) / 1000))
  [ $ms -le $((limit * 1000)) ] || fail "took $ms ms, more than $limit s: $*"
}

not() { ! "$@"; }

# --- domains. A name gives a fixed UUID, so that a scenario can name both without asking.

uuid_of() {
  local sum
  sum=$(printf %s "$1" | md5sum)
  echo "${sum:0:8}-${sum:8:4}-4${sum:13:3}-8${sum:17:3}-${sum:20:12}"
}

# derived_uuid DOMAIN REQUEST: what `uuidgen --sha1 -n DOMAIN_UUID -N REQUEST` prints.
derived_uuid() {
  python3 -c 'import sys, uuid; print(uuid.uuid5(uuid.UUID(sys.argv[1]), sys.argv[2]))' "$(uuid_of "$1")" "$2"
}

# domain_xml NAME [request=ATTRIBUTES]... [hostdev=MDEV_UUID]... [disk=FILE]: prints the XML of a domain.
#   domain_xml vm1 request='name="tty0" type="mtty-1"' hostdev=c2177883-f1bb-47f0-914d-32a22e3a8804
# Without disk= it boots a sector that halts. Metadata and devices of one's own: metadata=XML, device=XML.
domain_xml() {
  local name=$1 word requests='' devices='' metadata='' disk=/var/lib/libvirt/images/halt.img
  shift
  for word in "$@"; do
    case $word in
      request=*) requests+="<mdevd:request ${word#*=}/>" ;;
      hostdev=*) devices+="<hostdev mode='subsystem' type='mdev' model='vfio-pci' managed='no'>
        <source><address uuid='${word#*=}'/></source></hostdev>" ;;
      disk=*) disk=${word#*=} ;;
      metadata=*) metadata=${word#*=} ;;
      device=*) devices+=${word#*=} ;;
      *) fail "domain_xml: what is '$word'?" ;;
    esac
  done
  [ -z "$requests" ] || metadata="<mdevd:devices xmlns:mdevd='urn:mdevd:domain:1'>$requests</mdevd:devices>"
  cat <<XML
<domain type='qemu'>
  <name>$name</name><uuid>$(uuid_of "$name")</uuid>
  <metadata>$metadata</metadata>
  <memory unit='MiB'>48</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='$disk'/><target dev='sda' bus='sata'/><shareable/>
    </disk>
    <controller type='usb' model='none'/><memballoon model='none'/>
    $devices
  </devices>
</domain>
XML
}

# define NAME [what domain_xml takes]
define() {
  domain_xml "$@" >"/tmp/$1.xml"
  must virsh define "/tmp/$1.xml"
}

# define_tty NAME [TYPE]: with one request, tty0, and its hostdev under the derived UUID, which is left in $mdev.
define_tty() {
  mdev=$(derived_uuid "$1" tty0)
  define "$1" request="name=\"tty0\" type=\"${2:-mtty-1}\"" hostdev="$mdev"
}

start() { must virsh start "$1"; }
destroy() { must virsh destroy "$1"; }
state_is() { [ "$(virsh domstate "$1")" = "$2" ]; }
running() { state_is "$1" running; }
shut_off() { state_is "$1" 'shut off'; }
qemu_pid() { cat "/run/libvirt/qemu/$1.pid"; }

# --- the host

# A half-removed mdev is still in its parent's folder, but no longer under /sys/bus/mdev/devices.
mdev_exists() { [ -e "/sys/class/mdev_bus/mtty/$1" ]; }
mdev_type() { basename "$(readlink "/sys/bus/mdev/devices/$1/mdev_type")"; }
claim_file() { echo "$claims/$(uuid_of "$1").json"; }
has_claim() { [ -e "$(claim_file "$1")" ]; }
claim_state() { jq -r .state "$(claim_file "$1")"; }
no_claims() { [ -z "$(ls -A $claims 2>/dev/null)" ]; }
mdevs() { ls -d /sys/class/mdev_bus/*/????????-????-????-????-???????????? 2>/dev/null; }
mdevd_pid() { systemctl show -P MainPID mdevd; }
mdevd_is() { [ "$(systemctl is-active mdevd)" = "$1" ]; }

# runs_with NAME UUID [TYPE]: the VM runs, and its mdev is there with the right type and claimed.
runs_with() {
  running "$1" || fail "$1 is $(virsh domstate "$1")"
  mdev_exists "$2" || fail "no mdev $2 although $1 runs"
  [ "$(mdev_type "$2")" = "${3:-mtty-1}" ] || fail "the mdev is a $(mdev_type "$2"), not a ${3:-mtty-1}"
  has_claim "$1" || fail "no claim file although $1 runs: $(ls $claims)"
}

# released NAME [UUID]...: neither claim nor mdev is left, on disk, in the kernel and in what mdevd says.
released() {
  local uuid
  eventually shut_off "$1"
  eventually not has_claim "$1"
  for uuid in "${@:2}"; do eventually not mdev_exists "$uuid"; done
  must hostdevctl claims --json
  ! grep -q "$(uuid_of "$1")" <<<"$out" || fail "hostdevctl claims still lists $1"$'\n'"$out"
}

# make_mdev TYPE: as a person would, without mdevd: foreign to it. Prints its UUID. It must still be there when the scenario
# ends, unless the scenario calls forget_made; then it is removed.
made=/tmp/made
make_mdev() {
  local uuid
  uuid=$(cat /proc/sys/kernel/random/uuid)
  echo "$uuid" >"/sys/class/mdev_bus/mtty/mdev_supported_types/$1/create" || fail "cannot make a $1"
  echo "$uuid" | tee -a $made
}
forget_made() { : >$made; }

# fill N: takes instances of mtty-1 by hand until N are left.
fill() {
  local available
  available=$(cat /sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/available_instances)
  for ((; available > $1; available--)); do make_mdev mtty-1 >/dev/null; done
}

# A second hook script, run after ours; what it does comes on stdin, with the hook's arguments.
second_hook() {
  { echo '#!/bin/bash'; cat; } >$hooks/zz-second
  chmod 755 $hooks/zz-second
  must systemctl reload libvirtd
}

# hold UUID: a process keeps the mdev open so that nobody can see it: its file descriptors are in flight on a socket. The
# kernel makes `remove` wait until it ends. Its pid is in $holder.
hold() {
  local group fifo=/tmp/hold.$1
  group=$(basename "$(readlink "/sys/bus/mdev/devices/$1/iommu_group")")
  rm -f "$fifo" && mkfifo "$fifo"
  python3 - "$group" "$1" >"$fifo" <<'PYTHON' &
import fcntl, os, signal, socket, struct, sys

def vfio(n):
    return 0x3b64 + n  # _IO(';', 100 + n)

group, uuid = sys.argv[1:]
container = os.open('/dev/vfio/vfio', os.O_RDWR)
g = os.open('/dev/vfio/' + group, os.O_RDWR)
fcntl.ioctl(g, vfio(4), struct.pack('i', container))    # VFIO_GROUP_SET_CONTAINER
fcntl.ioctl(container, vfio(2), 1)                      # VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU
device = fcntl.ioctl(g, vfio(6), bytearray(uuid.encode() + b'\0'))  # VFIO_GROUP_GET_DEVICE_FD
a, b = socket.socketpair()
socket.send_fds(a, [b'x'], [container, g, device])
for fd in container, g, device:
    os.close(fd)
print('held', flush=True)
signal.pause()
PYTHON
  holder=$!
  [ "$(head -1 "$fifo")" = held ] || fail "could not hold $1"
}

let_go() {
  kill "$holder"
  wait "$holder" 2>/dev/null
  :
}
