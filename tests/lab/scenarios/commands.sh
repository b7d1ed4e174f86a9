# hostdevctl and the bus, as a person and as a program use them.

scenario_manual_create_and_remove() {
  local uuid=c2177883-f1bb-47f0-914d-32a22e3a8808
  must_print $uuid hostdevctl create mtty-2 --parent mtty --uuid $uuid
  [ "$(mdev_type $uuid)" = mtty-2 ] || fail "it is a $(mdev_type $uuid)"
  must_print $uuid hostdevctl list
  must_print 'mtty-2' hostdevctl show $uuid
  must_print "$uuid" hostdevctl xml $uuid
  must hostdevctl remove $uuid
  eventually not mdev_exists $uuid
  eventually no_claims
}

# What is printed for programs is JSON, and lists are arrays.
scenario_json() {
  local verb uuid=c2177883-f1bb-47f0-914d-32a22e3a8809
  must hostdevctl create mtty-1 --uuid $uuid
  for verb in list types claims; do
    must hostdevctl $verb --json
    jq -e 'type == "array" and length > 0' <<<"$out" >/dev/null || fail "hostdevctl $verb --json is no array with something in it"$'\n'"$out"
  done
  for verb in "show $uuid" status "explain name=x,type=mtty-1" "reconcile --dry-run"; do
    # shellcheck disable=SC2086
    must hostdevctl $verb --json
    jq -e . <<<"$out" >/dev/null || fail "hostdevctl $verb --json is no JSON"$'\n'"$out"
  done
  must hostdevctl remove $uuid
}

# 0 ok, 1 refused, 2 usage, 3 no daemon, 4 not authorized
scenario_exit_statuses() {
  must_exit 0 hostdevctl list
  must_exit 1 hostdevctl remove c2177883-f1bb-47f0-914d-32a22e3a8810
  must_exit 1 hostdevctl create mtty-7
  must_exit 2 hostdevctl frobnicate
  must_exit 0 runuser -u nobody -- hostdevctl list
  must_exit 4 runuser -u nobody -- hostdevctl create mtty-1
  must systemctl mask --runtime --now mdevd
  must_exit 3 hostdevctl list
  must systemctl unmask --runtime mdevd
  must systemctl start mdevd
}

scenario_bus() {
  must systemctl stop mdevd
  must_print 'PrepareDomain' busctl introspect org.mdevd1 /org/mdevd1 org.mdevd1.Manager
  mdevd_is active || fail "the call did not start mdevd"
  must_print '/org/mdevd1/parent/mtty' busctl tree --list org.mdevd1
  must_print 'mtty-1' busctl get-property org.mdevd1 /org/mdevd1/parent/mtty org.mdevd1.Parent Types
  must_fail_with 'only root may call PrepareDomain' runuser -u nobody -- busctl call org.mdevd1 /org/mdevd1 org.mdevd1.Manager \
    PrepareDomain 'ssaa{ss}aa{ss}a{sv}' "$(uuid_of vm)" vm 0 0 0
}
