# mdevd is killed at any point of giving a VM a virtual function and of taking it back, the setting of its MAC and VLAN among them.

# Claim files and the starts of writers; what else there is to a prepare and a release is the same for mdevs.
vf_kill_points=(rename clone,clone3,vfork)

# define_vf_kill1: the domain kill1 with a VF that mdevd itself binds, and what that is like before.
define_vf_kill1() {
  vfio
  must hostdevctl vfs $igb_pf 2
  vf=$(vf_of $igb_pf 1)
  eventually test -e "/sys/bus/pci/devices/$vf/net"
  function_facts "$vf" >/tmp/before
  define kill1 request="name=\"nic0\" address=\"$vf\" mac=\"$mac\" vlan=\"42\" trust=\"on\"" device="$(hostdev_pci "$vf" no)"
  must systemctl start mdevd
}

scenario_killed_in_prepare_of_a_vf() {
  local vf status kill_points=("${vf_kill_points[@]}")
  define_vf_kill1
  at_every_point 'a prepare of a VF' true 'as_libvirt prepare begin' vf_prepared_or_not
  must hostdevctl vfs $igb_pf 0
}

# A prepare that succeeded has set and bound all; one that failed nothing that stays after the release, which libvirt sends in both
# cases.
vf_prepared_or_not() {
  if [ $status = 0 ]; then
    [ "$(claim_state kill1)" = ready ] || fail "the claim is $(claim_state kill1)"
    [ "$(driver_of "$vf")" = vfio-pci ] || fail "$vf is on '$(driver_of "$vf")'"
    must_print "$mac.*vlan 42.*trust on" vf_line $igb_pf 1
  fi
  must as_libvirt release end
  vf_is_back
}

vf_is_back() {
  eventually not has_claim kill1
  as_before "$vf" /tmp/before
}

scenario_killed_in_release_of_a_vf() {
  local vf status kill_points=("${vf_kill_points[@]}")
  define_vf_kill1
  at_every_point 'a release of a VF' 'must as_libvirt prepare begin' release_and_wait vf_is_back
  must hostdevctl vfs $igb_pf 0
}
