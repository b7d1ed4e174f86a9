# A domain's XML may hold passwords. None of it is in a log, a claim, a property or a message of mdevd, at any log level.

canary=Zq7canaR # eight characters, which is what a VNC password may have

# secret_xml NAME: a domain with a request, and the canary wherever a person could put a secret: what libvirt gives a hook of it, and
# what it keeps in its status file.
secret_xml() {
  mdev=$(derived_uuid "$1" tty0)
  domain_xml "$1" metadata="<mdevd:devices xmlns:mdevd='urn:mdevd:domain:1'><mdevd:request name='tty0' type='${2:-mtty-1}'/></mdevd:devices>
    <other:note xmlns:other='urn:example:other'><other:token value='$canary'>$canary</other:token></other:note>" \
    hostdev="$mdev" device="<graphics type='vnc' port='-1' autoport='yes' passwd='$canary'/>" |
    sed "s|<domain type='qemu'>|<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>|
      s|<metadata>|<title>$canary</title><description>$canary</description>&|
      s|</devices>$|&<qemu:commandline><qemu:arg value='-object'/><qemu:arg value='secret,id=s0,data=$canary'/>\
<qemu:env name='TOKEN' value='$canary'/></qemu:commandline>|"
}

# says_nothing FILE...: the canary is in none of these files.
says_nothing() {
  local found
  found=$(grep -rn -- $canary "$@" 2>&1) && fail "a secret is in it: $found"
  return 0
}

# all_that_mdevd_says: claims and marks, properties, listings, the journal of everything.
all_that_mdevd_says() {
  local verb
  says_nothing /run/mdevd /etc/mdevd
  {
    busctl call --json=short org.mdevd1 /org/mdevd1 org.freedesktop.DBus.ObjectManager GetManagedObjects
    busctl call --json=short org.mdevd1 /org/mdevd1 org.freedesktop.DBus.Properties GetAll s org.mdevd1.Manager
    for verb in 'list --all' claims status doctor tree 'reconcile --dry-run' "show $mdev"; do
      # shellcheck disable=SC2086 # words are meant
      hostdevctl $verb --json
    done
    hostdevctl show "$mdev"
  } >/tmp/said 2>&1
  grep -q '"org.mdevd1.Function"' /tmp/said || fail "no object is shown: $(head /tmp/said)"
  says_nothing /tmp/said
  journalctl -q -o export --since "$began" _SYSTEMD_UNIT=mdevd.service + _SYSTEMD_UNIT=libvirtd.service >/tmp/said
  grep -q '^MESSAGE=Sent message' /tmp/said || fail "the log does not go down to trace: $(head /tmp/said)"
  says_nothing /tmp/said
}

scenario_secrets_stay_in_the_domain() {
  local began vm=secret1 damage
  began=$(date '+%F %T')
  mkdir -p /etc/mdevd/conf.d
  echo 'log-level = "trace"' >/etc/mdevd/conf.d/secrets.toml
  trap 'rm -f /etc/mdevd/conf.d/secrets.toml /run/libvirt/qemu/broken1.xml; systemctl reload mdevd; kill $(jobs -p) 2>/dev/null' EXIT
  must hostdevctl reload
  second_hook <<'HOOK'
cat >/tmp/seen.$2
HOOK
  secret_xml $vm >/tmp/$vm.xml
  must virsh define /tmp/$vm.xml
  start $vm
  runs_with $vm "$mdev"
  # it was there to be read: by the hook, and by mdevd, which looks at libvirt's status file
  grep -q $canary /tmp/seen.prepare || fail "libvirt does not show its hooks the canary"
  grep -q "passwd='$canary'" /run/libvirt/qemu/$vm.xml || fail "there is no password in libvirt's status file"
  must hostdevctl reconcile
  all_that_mdevd_says
  must systemctl restart mdevd
  must hostdevctl reconcile
  all_that_mdevd_says
  must systemctl restart libvirtd # its hook is told of `reconnect`
  must virsh list
  all_that_mdevd_says
  destroy $vm
  released $vm "$mdev"
  all_that_mdevd_says

  # what is refused, and why
  secret_xml secret2 mtty-7 >/tmp/secret2.xml
  must virsh define /tmp/secret2.xml
  must_fail_with "did you mean 'mtty-1'" virsh start secret2
  [[ $out != *$canary* ]] || fail "the message holds a secret: $out"
  all_that_mdevd_says

  # the hook with the whole of the XML, passwords too, and with what is no XML at any place of it
  must $hooks/mdevd $vm prepare begin - </tmp/$vm.xml
  all_that_mdevd_says
  must $hooks/mdevd $vm release end - </tmp/$vm.xml
  released $vm "$mdev"
  for damage in "s/passwd='\(.*\)'/passwd=\1/" "s/passwd='/&\&/" "s/passwd='$canary'/&x'/" "s/>$canary</>\&$canary;</" \
    "s/data=$canary'/data=$canary/" "s/.*$canary.*/&\x01/"; do
    sed "$damage" /tmp/$vm.xml >/tmp/broken.xml
    must_fail_with 'cannot be read: the domain XML is refused at line' $hooks/mdevd $vm prepare begin - </tmp/broken.xml
    [[ $out != *$canary* ]] || fail "the message holds a secret: $out"
  done

  # and mdevd, which finds such a status file, and cannot tell whether a domain runs
  must $hooks/mdevd $vm prepare begin - </tmp/$vm.xml
  { echo "<domstatus state='running' pid='1'>"; sed "s/passwd='\(.*\)'/passwd=\1/" /tmp/$vm.xml; echo '</domstatus>'; } \
    >/run/libvirt/qemu/broken1.xml
  must systemctl restart mdevd
  must hostdevctl reconcile
  must hostdevctl status
  matches 'broken1.xml: .*the value of an attribute is not quoted' || fail "nobody complains of it"$'\n'"$out"
  [[ $out != *$canary* ]] || fail "the message holds a secret: $out"
  all_that_mdevd_says
  rm /run/libvirt/qemu/broken1.xml
  must $hooks/mdevd $vm release end - </tmp/$vm.xml
  released $vm "$mdev"
}
