# PCI functions and virtual functions, by address, with nothing but libvirt's own XML and our metadata; each is what it was afterwards.

nic=0000:03:00.0   # e1000e
igb_pf=0000:01:00.0
nvme_pf=0000:02:00.0

# --- what a function is, line by line, so that two of them can be compared

driver_of() { basename "$(readlink "/sys/bus/pci/devices/$1/driver")" 2>/dev/null; }

# function_facts ADDRESS: what must be the same before and after. A rebind changes power/ and the netdev's index; those do not count.
# udev gives a new netdev its name, and one with a random address a lasting one. Of a virtual function it is also what its PF says.
function_facts() {
  local at=/sys/bus/pci/devices/$1 name
  udevadm settle
  echo "driver $(driver_of "$1")"
  echo "override $(cat "$at/driver_override")"
  for name in reset_method sriov_numvfs sriov_drivers_autoprobe; do
    [ ! -e "$at/$name" ] || echo "$name $(cat "$at/$name")"
  done
  for name in "$at"/net/*; do
    [ ! -e "$name" ] || echo "netdev ${name##*/} $(cat "$name/address")"
  done
  for name in "$at"/physfn/virtfn*; do
    [ ! "$name" -ef "$at" ] || [ ! -e "$at/physfn/net" ] || vf_line "$(basename "$(readlink "$at/physfn")")" "${name##*virtfn}"
  done
}

# vf_line PF INDEX: what `ip link show` says of a virtual function.
vf_line() { ip link show "$(ls "/sys/bus/pci/devices/$1/net")" | grep "vf $2 "; }

# is_as_before ADDRESS FILE: eventually, since udev gives a netdev its name after the driver has come back
is_as_before() { function_facts "$1" | diff "$2" -; }
as_before() { eventually is_as_before "$1" "$2"; }

# hostdev_pci ADDRESS [MANAGED]
hostdev_pci() {
  local domain bus slot function
  IFS=:. read -r domain bus slot function <<<"$1"
  echo "<hostdev mode='subsystem' type='pci' managed='${2:-yes}'><source>
    <address domain='0x$domain' bus='0x$bus' slot='0x$slot' function='0x$function'/></source></hostdev>"
}

# interface_pci ADDRESS MAC VLAN
interface_pci() {
  local domain bus slot function
  IFS=:. read -r domain bus slot function <<<"$1"
  echo "<interface type='hostdev' managed='yes'><mac address='$2'/><source>
    <address type='pci' domain='0x$domain' bus='0x$bus' slot='0x$slot' function='0x$function'/></source>
    <vlan><tag id='$3'/></vlan></interface>"
}

vf_of() { basename "$(readlink "/sys/bus/pci/devices/$1/virtfn$2")"; }
num_vfs() { cat "/sys/bus/pci/devices/$1/sriov_numvfs"; }
vfio() { modprobe vfio-pci; }
# libvirt sets MAC and VLAN of a VF only while its PF is up
up() { ip link set "$(ls "/sys/bus/pci/devices/$1/net")" up; }

# has_function NAME ADDRESS: the VM runs, its function is with VFIO, and the claim names it.
has_function() {
  running "$1" || fail "$1 is $(virsh domstate "$1")"
  [ "$(driver_of "$2")" = vfio-pci ] || fail "$2 is on '$(driver_of "$2")', not on vfio-pci"
  has_claim "$1" || fail "no claim file although $1 runs: $(ls $claims)"
  grep -q "$2" "$(claim_file "$1")" || fail "the claim does not name $2"
}

# ends_well NAME ADDRESS CMD [what define takes]...: destroyed, QEMU killed, not even started: after each the function is what it was.
# CMD is run while the VM runs.
ends_well() {
  local name=$1 address=$2 while_it_runs=$3
  shift 3
  function_facts "$address" >/tmp/well
  define "$name" "$@"
  start "$name"
  has_function "$name" "$address"
  $while_it_runs
  destroy "$name"
  released "$name"
  as_before "$address" /tmp/well
  start "$name"
  has_function "$name" "$address"
  must kill -9 "$(qemu_pid "$name")"
  eventually shut_off "$name"
  released "$name"
  as_before "$address" /tmp/well
  define "$name" "$@" disk=/nowhere.img
  must_fail_with 'nowhere\.img' virsh start "$name"
  released "$name"
  as_before "$address" /tmp/well
}

# --- whole functions

scenario_pci_function() {
  vfio
  ends_well pci1 $nic nic_is_shown request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic)"
}

nic_is_shown() {
  must_print 'pci1' hostdevctl show $nic
  matches 'qemu' || fail "hostdevctl show does not name QEMU"$'\n'"$out"
}

# mdevd itself binds what libvirt is told to leave alone.
scenario_pci_function_unmanaged() {
  vfio
  ends_well pci2 $nic true request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic no)"
}

# An override that was there before is there again.
scenario_pci_function_with_an_override() {
  local managed
  vfio
  echo e1000e >/sys/bus/pci/devices/$nic/driver_override
  for managed in yes no; do
    ends_well "pci3$managed" $nic true request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic $managed)"
  done
  echo >/sys/bus/pci/devices/$nic/driver_override
}

# Claimed for whoever has it in libvirt's own XML, where the configuration says so.
scenario_pci_function_of_manage() {
  vfio
  trap 'rm /etc/mdevd/conf.d/lab.toml; hostdevctl reload' EXIT
  mkdir -p /etc/mdevd/conf.d
  printf '[pci]\nmanage = ["%s"]\n' $nic >/etc/mdevd/conf.d/lab.toml
  must hostdevctl reload
  define pci9 device="$(hostdev_pci $nic)"
  ends_well pci8 $nic pci9_is_refused device="$(hostdev_pci $nic)"
}

pci9_is_refused() { must_fail_with "promised to domain 'pci8'" virsh start pci9; }

scenario_pci_two_domains_one_function() {
  vfio
  define pci5 request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic)"
  define pci6 request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic)"
  start pci5
  must_fail_with "promised to domain 'pci5'" virsh start pci6
  has_function pci5 $nic
  destroy pci5
  released pci5
  start pci6
  destroy pci6
  released pci6
}

scenario_pci_killed_while_bound() {
  vfio
  function_facts $nic >/tmp/before
  define pci7 request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic no)"
  start pci7
  must kill -9 "$(mdevd_pid)"
  must systemctl restart mdevd
  has_function pci7 $nic
  destroy pci7
  released pci7
  as_before $nic /tmp/before
}

# --- virtual functions

mac=52:54:00:6d:90:02

scenario_vf_as_hostdev() {
  local vf
  vfio
  must hostdevctl vfs $igb_pf 2
  [ "$(num_vfs $igb_pf)" = 2 ] || fail "$igb_pf has $(num_vfs $igb_pf) VFs, not 2"
  vf=$(vf_of $igb_pf 1)
  eventually test -e "/sys/bus/pci/devices/$vf/net"
  function_facts $igb_pf >/tmp/pf-before
  ends_well vf1 "$vf" vf1_is_set_up request="name=\"nic0\" address=\"$vf\" mac=\"$mac\" vlan=\"42\" trust=\"on\"" \
    device="$(hostdev_pci "$vf")"
  as_before $igb_pf /tmp/pf-before
  must hostdevctl vfs $igb_pf 0
  [ "$(num_vfs $igb_pf)" = 0 ] || fail "$igb_pf still has $(num_vfs $igb_pf) VFs"
}

vf1_is_set_up() {
  must_print "$mac" vf_line $igb_pf 1
  matches 'vlan 42' || fail "the VF is not in the VLAN"$'\n'"$out"
  matches 'trust on' || fail "the VF is not trusted"$'\n'"$out"
  must_fail_with "promised to domain 'vf1'" hostdevctl vfs $igb_pf 0
  must_fail_with "promised to domain 'vf1'" hostdevctl vfs $igb_pf 3
}

scenario_vf_as_interface() {
  local vf
  vfio
  up $igb_pf
  must hostdevctl vfs $igb_pf 1
  vf=$(vf_of $igb_pf 0)
  eventually test -e "/sys/bus/pci/devices/$vf/net"
  function_facts "$vf" >/tmp/before
  define vf2 request="name=\"nic0\" address=\"$vf\" spoof-check=\"off\"" device="$(interface_pci "$vf" $mac 42)"
  start vf2
  has_function vf2 "$vf"
  must_print "$mac.*vlan 42.*spoof checking off" vf_line $igb_pf 0
  must kill -9 "$(qemu_pid vf2)"
  eventually shut_off vf2
  released vf2
  as_before "$vf" /tmp/before
  ends_well vf2 "$vf" true request="name=\"nic0\" address=\"$vf\"" device="$(interface_pci "$vf" $mac 42)"
  # what the request and the interface say must be the same
  define vf2 request="name=\"nic0\" address=\"$vf\" mac=\"52:54:00:00:00:99\"" device="$(interface_pci "$vf" $mac 42)"
  must_fail_with 'its MAC is .*, the request' virsh start vf2
  must hostdevctl vfs $igb_pf 0
}

scenario_vf_of_an_nvme() {
  local vf
  vfio
  must hostdevctl vfs $nvme_pf 2
  vf=$(vf_of $nvme_pf 0)
  function_facts $nvme_pf >/tmp/pf-before
  ends_well vf3 "$vf" true request="name=\"disk0\" address=\"$vf\"" device="$(hostdev_pci "$vf")"
  as_before $nvme_pf /tmp/pf-before
  must hostdevctl vfs $nvme_pf 0
}

scenario_mdev_vf_and_function() {
  local vf
  vfio
  must hostdevctl vfs $igb_pf 1
  vf=$(vf_of $igb_pf 0)
  eventually test -e "/sys/bus/pci/devices/$vf/net"
  function_facts "$vf" >/tmp/before-vf && function_facts $nic >/tmp/before-nic
  mdev=$(derived_uuid all1 tty0)
  define all1 request='name="tty0" type="mtty-1"' hostdev="$mdev" \
    request="name=\"nic0\" address=\"$vf\" mac=\"$mac\"" device="$(hostdev_pci "$vf")" \
    request="name=\"nic1\" address=\"$nic\"" device="$(hostdev_pci $nic)"
  start all1
  runs_with all1 "$mdev"
  has_function all1 "$vf"
  has_function all1 $nic
  destroy all1
  released all1 "$mdev"
  as_before "$vf" /tmp/before-vf
  as_before $nic /tmp/before-nic
  must hostdevctl vfs $igb_pf 0
}

# libvirt's own pool of VFs, on a PF that mdevd leaves alone
scenario_network_pool_beside() {
  local netdev
  vfio
  netdev=$(ls /sys/bus/pci/devices/$igb_pf/net)
  up $igb_pf
  echo 2 >/sys/bus/pci/devices/$igb_pf/sriov_numvfs
  eventually test -e "/sys/bus/pci/devices/$(vf_of $igb_pf 1)/net"
  cat >/tmp/pool.xml <<XML
<network><name>pool</name><forward mode='hostdev' managed='yes'><pf dev='$netdev'/></forward></network>
XML
  must virsh net-define /tmp/pool.xml
  must virsh net-start pool
  define pool1 request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic)" \
    device="<interface type='network'><source network='pool'/></interface>"
  start pool1
  has_function pool1 $nic
  destroy pool1
  released pool1
  must virsh net-destroy pool
  must virsh net-undefine pool
  must hostdevctl vfs $igb_pf 0
}

# From outside, while a VM has one: the kernel waits, and so does whoever wrote; mdevd answers on.
scenario_vfs_taken_from_outside() {
  local vf writer
  vfio
  must hostdevctl vfs $igb_pf 1
  vf=$(vf_of $igb_pf 0)
  define vf4 request="name=\"nic0\" address=\"$vf\"" device="$(hostdev_pci "$vf")"
  start vf4
  bash -c "echo 0 >/sys/bus/pci/devices/$igb_pf/sriov_numvfs" &
  writer=$!
  eventually grep -q vfio /proc/$writer/wchan
  within 10 hostdevctl list
  within 10 hostdevctl claims
  must_print 'vf4' hostdevctl claims
  must virsh destroy vf4
  wait $writer
  released vf4
  [ "$(num_vfs $igb_pf)" = 0 ] || fail "$igb_pf still has VFs"
}

# --- what is refused

scenario_pci_refusals() {
  local disk bridge
  vfio
  disk=$(basename "$(readlink -f /sys/block/vda/device/..)")
  bridge=$(basename "$(dirname "$(readlink -f /sys/bus/pci/devices/$nic)")")
  define no1 request="name=\"d\" address=\"$disk\"" device="$(hostdev_pci "$disk")"
  must_fail_with 'the host itself needs .*carries / ' virsh start no1
  define no1 request="name=\"d\" address=\"$bridge\"" device="$(hostdev_pci $bridge)"
  must_fail_with 'is a bridge' virsh start no1
  define no1 request="name=\"d\" address=\"0000:7f:00.0\"" device="$(hostdev_pci 0000:7f:00.0)"
  must_fail_with 'does not have the PCI function 0000:7f:00.0' virsh start no1
  define no1 request="name=\"d\" address=\"0000:00:1f.0\"" device="$(hostdev_pci 0000:00:1f.0)"
  must_fail_with 'is part of the chipset' virsh start no1
  define no1 request="name=\"d\" kind=\"vf\""
  must_fail_with 'names one address' virsh start no1
  define no1 request="name=\"d\" address=\"$nic\""
  must_fail_with '<hostdev mode=' virsh start no1
  must_fail_with 'can have 7 virtual functions, not 99' hostdevctl vfs $igb_pf 99
  must_fail_with 'can have no VFs' hostdevctl vfs $nic 1
  released no1
}

# XML that the installed libvirt would not understand is not printed.
scenario_xml_of_a_newer_libvirt() {
  local print=(hostdevctl xml $nic --driver mlx5_vfio_pci)
  if [[ $(virsh --version) = 9.* ]]; then
    must_fail_with 'needs libvirt 10\.0' "${print[@]}"
    must_fail_with 'needs libvirt 10\.0' hostdevctl xml --domain "$(uuid_of x1)" \
      --request "name=nic0,address=$nic,driver=mlx5_vfio_pci"
  else
    must_print "model='mlx5_vfio_pci'" "${print[@]}"
  fi
}

# --- the doctor

scenario_doctor_all_well() {
  vfio
  must hostdevctl doctor
  must_print "^ready|ready" hostdevctl doctor $nic
  must_print '"verdict": *"ready"' hostdevctl doctor $nic --json
}

scenario_doctor_without_vfio_pci() {
  must modprobe -r vfio-pci
  must_exit 1 hostdevctl doctor $nic
  matches 'modprobe vfio-pci' || fail "the doctor does not say what to type"$'\n'"$out"
  define doc1 request="name=\"nic0\" address=\"$nic\"" device="$(hostdev_pci $nic no)"
  must_fail_with 'the driver vfio-pci is not loaded: modprobe vfio-pci' virsh start doc1
  released doc1
}

# In a guest of its own, which was booted with intel_iommu=off.
scenario_doctor_iommu_off() {
  must_exit 1 hostdevctl doctor
  matches 'intel_iommu=off' || fail "the doctor does not name the parameter"$'\n'"$out"
  must_exit 1 hostdevctl doctor $nic
  must_fail_with 'has no IOMMU group' hostdevctl bind $nic
}
