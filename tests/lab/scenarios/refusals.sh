# What is refused says why, and leaves nothing behind.

scenario_full_parent() {
  define_tty full1
  fill 0
  must_fail_with 'mtty-1.*(no instance|no free|full|left|ENOSPC)|(no instance|no free|full|left|ENOSPC).*mtty-1' virsh start full1
  matches 'left on mtty' || fail "the parent is not named"$'\n'"$out"
  matches 'stop a VM|another type' || fail "it does not say what to do"$'\n'"$out"
  released full1 "$mdev"
}

scenario_race_for_the_last_instance() {
  local winner loser a b
  define_tty race1; a=$mdev
  define_tty race2; b=$mdev
  fill 1
  virsh start race1 >/tmp/race1.out 2>&1 &
  virsh start race2 >/tmp/race2.out 2>&1 &
  wait
  if running race1; then winner=race1 loser=race2 mdev=$a; else winner=race2 loser=race1 mdev=$b; fi
  runs_with $winner "$mdev"
  shut_off $loser || fail "both run"
  grep -q "$winner" /tmp/$loser.out || fail "the message of $loser does not name $winner: $(cat /tmp/$loser.out)"
  has_claim $loser && fail "$loser has a claim"
  destroy $winner
  released $winner "$mdev"
  mdev=$([ $loser = race1 ] && echo "$a" || echo "$b")
  start $loser # now it is free
  runs_with $loser "$mdev"
  destroy $loser
  released $loser "$mdev"
}

scenario_hostdev_is_missing() {
  local uuid
  uuid=$(derived_uuid nodev1 tty0)
  define nodev1 request='name="tty0" type="mtty-1"'
  must_fail_with "add to <devices>" virsh start nodev1
  matches "<address uuid=.$uuid" || fail "the element to paste is not printed"$'\n'"$out"
  released nodev1 "$uuid"
}

scenario_unknown_type() {
  local uuid
  uuid=$(derived_uuid notype1 tty0)
  define notype1 request='name="tty0" type="mtty-7"' hostdev="$uuid"
  must_fail_with "mtty-7.*did you mean 'mtty-1'" virsh start notype1
  released notype1 "$uuid"
}

scenario_unknown_attribute() {
  local uuid
  uuid=$(derived_uuid noattr1 tty0)
  define noattr1 request='name="tty0" type="mtty-1" colour="red"' hostdev="$uuid"
  must_fail_with "tty0.*'colour'.*the keys are" virsh start noattr1
  released noattr1 "$uuid"
}

# A domain that was cloned with virt-clone or by hand: its own UUID, the hostdev of the other one.
scenario_cloned_domain() {
  local uuid=c2177883-f1bb-47f0-914d-32a22e3a8805
  define orig1 request="name=\"tty0\" type=\"mtty-1\" uuid=\"$uuid\"" hostdev=$uuid
  define clone1 request="name=\"tty0\" type=\"mtty-1\" uuid=\"$uuid\"" hostdev=$uuid
  start orig1
  must_fail_with 'orig1' virsh start clone1
  runs_with orig1 $uuid
  has_claim clone1 && fail "the clone has a claim"
  destroy orig1
  released orig1 $uuid
}

scenario_foreign_mdev() {
  local uuid
  uuid=$(make_mdev mtty-1)
  eventually sh -c "hostdevctl list | grep $uuid | grep -i foreign"
  must_fail_with 'not made by mdevd.*--force' hostdevctl remove "$uuid"
  must hostdevctl reconcile
  must systemctl restart mdevd
  must hostdevctl list
  mdev_exists "$uuid" || fail "a foreign mdev was removed"
  forget_made
  must hostdevctl remove --force "$uuid"
  eventually not mdev_exists "$uuid"
}

# Never from under a running VM, whatever the caller says.
scenario_mdev_in_use() {
  define_tty busy1
  start busy1
  must_fail_with "belongs to domain 'busy1'" hostdevctl remove "$mdev"
  must_fail_with 'in use by qemu.*stop that first' hostdevctl remove --force "$mdev"
  runs_with busy1 "$mdev"
  destroy busy1
  released busy1 "$mdev"
}

scenario_session_libvirt() {
  # the hook that an ordinary user's libvirtd runs
  define plain1
  define_tty wants1
  must runuser -u nobody -- /usr/bin/mdevd-hook plain1 prepare begin - </tmp/plain1.xml
  must_fail_with 'needs qemu:///system' runuser -u nobody -- /usr/bin/mdevd-hook wants1 prepare begin - </tmp/wants1.xml
  must runuser -u nobody -- /usr/bin/mdevd-hook wants1 reconnect begin - </tmp/wants1.xml
}
