# mdevd stops, starts, dies or is gone; libvirtd too. VMs run on, and are freed when they stop.

scenario_plain_vm_without_mdevd() {
  define plain2
  must systemctl stop mdevd
  start plain2
  running plain2 || fail "does not run"
  mdevd_is inactive || fail "a VM without requests started mdevd: it is $(systemctl is-active mdevd)"
  destroy plain2
  mdevd_is inactive || fail "a VM without requests started mdevd: it is $(systemctl is-active mdevd)"
}

scenario_programs_deleted() {
  # as after `apt remove`, which leaves the hook entry behind
  define plain3
  must systemctl stop mdevd
  mkdir -p /root/away
  mv /usr/bin/mdevd-hook /usr/bin/hostdevctl /usr/libexec/mdevd /root/away/
  start plain3
  must systemctl restart libvirtd
  eventually running plain3
  destroy plain3
  mv /root/away/mdevd-hook /root/away/hostdevctl /usr/bin/
  mv /root/away/mdevd /usr/libexec/
}

scenario_started_by_the_bus() {
  define_tty act1
  must systemctl stop mdevd
  start act1
  runs_with act1 "$mdev"
  mdevd_is active || fail "mdevd is $(systemctl is-active mdevd)"
  destroy act1
  released act1 "$mdev"
}

scenario_cannot_be_started() {
  define_tty away1
  must systemctl mask --runtime --now mdevd
  within 10 must_fail_with 'mdevd.*(systemctl|start)' virsh start away1
  must systemctl unmask --runtime mdevd
  must systemctl start mdevd
  released away1 "$mdev"
}

scenario_restart_under_a_vm() {
  define_tty rest1
  start rest1
  must systemctl restart mdevd
  runs_with rest1 "$mdev"
  must systemctl stop mdevd
  runs_with rest1 "$mdev"
  must systemctl start mdevd
  runs_with rest1 "$mdev"
  must_print 'rest1' hostdevctl show "$mdev"
  destroy rest1
  released rest1 "$mdev"
}

scenario_libvirtd_restarts_under_a_vm() {
  define_tty rest2
  start rest2
  must systemctl restart libvirtd
  eventually running rest2
  runs_with rest2 "$mdev"
  must systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd
  must hostdevctl reconcile
  mdev_exists "$mdev" || fail "the mdev was removed while libvirtd was stopped"
  must systemctl start libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd
  eventually running rest2
  runs_with rest2 "$mdev"
  destroy rest2
  released rest2 "$mdev"
}

# The VM stops while mdevd cannot be reached: the hook leaves a mark, and the next daemon reads it.
scenario_vm_stops_without_mdevd() {
  define_tty mark1
  start mark1
  must systemctl mask --runtime --now mdevd
  destroy mark1
  shut_off mark1 || fail "still $(virsh domstate mark1)"
  must_print "$(uuid_of mark1)" ls /run/mdevd/released
  mdev_exists "$mdev" || fail "somebody removed the mdev"
  must systemctl unmask --runtime mdevd
  must systemctl start mdevd
  released mark1 "$mdev"
  eventually not test -e "/run/mdevd/released/$(uuid_of mark1)"
}

# VMs run, claims are lost: taken over from libvirt's status files.
scenario_claims_lost() {
  define_tty lost1
  start lost1
  must systemctl stop mdevd
  rm -f $claims/*
  must systemctl start mdevd
  eventually has_claim lost1
  runs_with lost1 "$mdev"
  destroy lost1
  eventually shut_off lost1
  eventually not has_claim lost1
  # whether the mdev was there before mdevd, nobody knows any more: it may stay
  if mdev_exists "$mdev"; then must hostdevctl remove --force "$mdev"; fi
}

# A `remove` that hangs in the kernel does not keep mdevd from stopping, or from starting.
scenario_stop_while_a_remove_hangs() {
  while_a_remove_hangs stop_at_once
}

# Nor does it matter when mdevd is killed meanwhile: the next one sees that the write is in flight.
scenario_killed_while_a_remove_hangs() {
  while_a_remove_hangs kill_it
}

stop_at_once() {
  within 5 systemctl stop mdevd
  mdevd_is inactive || fail "mdevd is $(systemctl is-active mdevd)"
}

kill_it() {
  must kill -9 "$(mdevd_pid)"
  must systemctl stop mdevd # it may have been started again already
}

# while_a_remove_hangs CMD: CMD ends mdevd while the kernel does not come back from a removal.
while_a_remove_hangs() {
  local remove other uuid=c2177883-f1bb-47f0-914d-32a22e3a8806
  must hostdevctl create mtty-1 --uuid $uuid
  hold $uuid
  hostdevctl remove $uuid >/tmp/remove.out 2>&1 &
  remove=$!
  eventually not test -e /sys/bus/mdev/devices/$uuid # the kernel has begun
  "$1"
  ! wait $remove || fail "hostdevctl says that it is removed: $(cat /tmp/remove.out)"
  within 5 systemctl start mdevd
  must_print 'stuck' hostdevctl show $uuid
  must_print 'stuck' hostdevctl list
  other=$(hostdevctl create mtty-1 2>/dev/null) || fail "the rest of the parent is not usable"
  mdev_exists "$other" || fail "hostdevctl says that it made '$other', but it is not there"
  must hostdevctl remove "$other"
  mdev_exists $uuid || fail "it went away although it is held"
  let_go
  eventually not mdev_exists $uuid
  eventually no_claims
  eventually sh -c "! hostdevctl list | grep -q $uuid"
}

# Past its deadline a hanging removal is an answer, and the device is shown as stuck until the kernel lets go.
scenario_remove_hangs() {
  local uuid=c2177883-f1bb-47f0-914d-32a22e3a8807
  must hostdevctl create mtty-1 --uuid $uuid
  hold $uuid
  must_fail_with 'stuck|timed ?out|hang' timeout 20 hostdevctl remove $uuid
  must_print 'stuck' hostdevctl list
  let_go
  eventually not mdev_exists $uuid
  eventually no_claims
  eventually sh -c "! hostdevctl list | grep -q $uuid"
}
