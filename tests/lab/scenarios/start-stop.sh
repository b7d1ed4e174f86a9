# A VM gets its device when it starts, and the host is clean again when it stops, for whatever reason.

scenario_start_and_destroy() {
  local uuid=c2177883-f1bb-47f0-914d-32a22e3a8804
  define vm1 request="name=\"tty0\" type=\"mtty-1\" uuid=\"$uuid\"" hostdev=$uuid
  start vm1
  runs_with vm1 $uuid
  must_print 'qemu' hostdevctl show $uuid
  matches 'vm1' || fail "hostdevctl show does not name the domain"$'\n'"$out"
  must_print "$(uuid_of vm1)" hostdevctl claims --json
  destroy vm1
  released vm1 $uuid
}

scenario_derived_uuid() {
  define_tty vm2 mtty-2
  start vm2
  runs_with vm2 "$mdev" mtty-2
  destroy vm2
  released vm2 "$mdev"
}

scenario_two_requests() {
  local first second
  first=$(derived_uuid vm3 tty0) second=$(derived_uuid vm3 tty1)
  define vm3 request='name="tty0" type="mtty-1"' request='name="tty1" type="mtty-2"' hostdev="$first" hostdev="$second"
  start vm3
  runs_with vm3 "$first" mtty-1
  runs_with vm3 "$second" mtty-2
  destroy vm3
  released vm3 "$first" "$second"
}

scenario_guest_powers_off() {
  mdev=$(derived_uuid vm4 tty0)
  define vm4 request='name="tty0" type="mtty-1"' hostdev="$mdev" disk=/var/lib/libvirt/images/poweroff.img
  start vm4
  eventually 30 shut_off vm4
  released vm4 "$mdev"
}

scenario_qemu_killed() {
  define_tty vm5
  start vm5
  must kill -9 "$(qemu_pid vm5)"
  eventually shut_off vm5
  released vm5 "$mdev"
}

scenario_start_fails_later() {
  # the device is made in `prepare`; then libvirt finds that the disk is missing
  mdev=$(derived_uuid vm6 tty0)
  define vm6 request='name="tty0" type="mtty-1"' hostdev="$mdev" disk=/nowhere.img
  must_fail_with 'nowhere\.img' virsh start vm6
  released vm6 "$mdev"
}

scenario_back_to_back() {
  define_tty vm7
  start vm7
  for _ in 1 2; do
    destroy vm7
    start vm7
    runs_with vm7 "$mdev"
  done
  destroy vm7
  released vm7 "$mdev"
}

# `virsh metadata --set` takes any element, and the hook is given what has become of the XML.
scenario_requests_spoiled_while_running() {
  define_tty vm10
  start vm10
  must virsh metadata vm10 urn:mdevd:domain:1 --key mdevd --live --set '<request name="tty0" type="mtty-1"/>'
  must_print '^keep.*held by' hostdevctl reconcile
  runs_with vm10 "$mdev"
  destroy vm10
  # at the hook's word, and not only when mdevd has looked twice
  eventually 15 not has_claim vm10
  released vm10 "$mdev"
}

scenario_managed_save_is_refused() {
  define_tty vm8
  start vm8
  must jq -S '{id, owner, grants, run}' "$(claim_file vm8)"
  local before=$out
  must_fail_with '(migrat|sav)' virsh managedsave vm8
  runs_with vm8 "$mdev"
  must jq -S '{id, owner, grants, run}' "$(claim_file vm8)"
  [ "$out" = "$before" ] || fail "the claim changed: $before"$'\n'"$out"
  destroy vm8
  released vm8 "$mdev"
}

# The XML that hostdevctl prints, pasted into a domain, is a domain that starts.
scenario_xml_before_anything_exists() {
  local text metadata device
  # what a person copies; the note is on stderr
  text=$(hostdevctl xml --domain "$(uuid_of vm9)" --request name=tty0,type=mtty-1 2>/dev/null) || fail "hostdevctl prints no XML"
  metadata=$(sed -n '/<mdevd:devices/,/<\/mdevd:devices>/p' <<<"$text")
  device=$(sed -n '/<hostdev/,/<\/hostdev>/p' <<<"$text")
  define vm9 metadata="$metadata" device="$device"
  start vm9
  runs_with vm9 "$(derived_uuid vm9 tty0)"
  destroy vm9
  released vm9 "$(derived_uuid vm9 tty0)"
}
