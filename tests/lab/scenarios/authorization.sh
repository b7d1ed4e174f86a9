# Who may call what, with the real polkitd, and what a person reads who is asked for a password.
#
# A call that is let pass goes no further: each has an option that no method knows, which is looked at after the right to call.

polkit_rules=/etc/polkit-1/rules.d
caller=/tmp/caller.py

# --- the host, so that nothing that was denied has changed it

# host_facts: mdevs and claims, and of each PCI function its driver, its override and how many virtual functions it has.
host_facts() {
  local at
  for at in $(mdevs); do echo "$at $(readlink "$at/mdev_type")"; done
  for at in "$claims"/*; do
    [ ! -e "$at" ] || echo "$at $(jq -Sc . "$at")"
  done
  for at in /sys/bus/pci/devices/*; do
    echo "$at $(readlink "$at/driver") $(cat "$at/driver_override") $(cat "$at/sriov_numvfs" 2>/dev/null)"
  done
  ip -o link show
}

# --- callers and rules

# people: an administrator, a user with a rule by type, one with a rule for claims, and one with nothing.
people() {
  local name
  must groupadd vgpu
  for name in admin ruled owner ordinary; do must useradd "$name"; done
  must usermod -aG sudo admin
  must usermod -aG vgpu ruled
}

no_people() {
  local name
  for name in admin ruled owner ordinary; do userdel "$name"; done
  groupdel vgpu
}

# polkit_is there|denying|absent|hanging
polkit_is() {
  kill -CONT "$(systemctl show -P MainPID polkit)" 2>/dev/null
  systemctl unmask --runtime polkit
  rm -f $polkit_rules/*-mdevd-lab.rules
  # the example that is installed, for the lab's type
  sed 's/nvidia-63/mtty-1/' /usr/share/doc/mdevd/examples/50-mdevd.rules >$polkit_rules/50-mdevd-lab.rules
  cat >$polkit_rules/51-mdevd-lab.rules <<'RULES'
polkit.addRule(function(action, subject) {
    if (action.id === "org.mdevd1.claim" && subject.user === "owner") {
        return polkit.Result.YES;
    }
});
RULES
  case $1 in
    denying)
      cat >$polkit_rules/00-mdevd-lab.rules <<'RULES'
polkit.addRule(function(action, subject) {
    if (action.id.indexOf("org.mdevd1.") === 0) {
        return polkit.Result.NO;
    }
});
RULES
      ;;
    absent)
      must systemctl mask --runtime --now polkit
      return
      ;;
  esac
  must systemctl restart polkit
  [ "$1" != hanging ] || must kill -STOP "$(systemctl show -P MainPID polkit)"
}

polkit_as_before() {
  kill -CONT "$(systemctl show -P MainPID polkit)" 2>/dev/null
  systemctl unmask --runtime polkit
  rm -f $polkit_rules/*-mdevd-lab.rules
  systemctl restart polkit
}

# as USER COMMAND...
as() {
  if [ "$1" = root ]; then "${@:2}"; else runuser -u "$1" -- "${@:2}"; fi
}

# write_caller: a program that calls every method of the installed interface XML as each of these users, and writes a line for each
# into /tmp/USER.cells: its name, a tab, and yes, no, password (when its own authentication agent was asked, which whoever runs it as
# `prompt` has), or the error; a tab, and what was to be read.
write_caller() {
  cat >$caller <<'PYTHON'
import glob, os, pwd, sys, time
import xml.etree.ElementTree as ET
from gi.repository import Gio, GLib

users, polkit_is = sys.argv[1].split(), sys.argv[2]
# One by one, so that it is clear what was asked for; all at once where polkit does not answer; else so few that it does within the 10 s
# that mdevd gives it.
in_flight = 1 if users == ['prompt'] else 100 if polkit_is == 'hanging' else 4
owners_mdev, owners_claim, roots_mdev, roots_claim, function, pf, vf = sys.argv[3:]
UUID = 'c2177883-f1bb-47f0-914d-32a22e3a8804'
SAMPLES = {
    'CreateMdev': [("the rule's type", ['mtty-1']), ('another type', ['mtty-2'])],
    'Acquire': [("the rule's type", [[{'name': 'a', 'type': 'mtty-1'}]]),
                ('that and another', [[{'name': 'a', 'type': 'mtty-1'}, {'name': 'b', 'type': 'mtty-2'}]]),
                ('a PCI function', [[{'name': 'a', 'address': function}]])],
    'PrepareDomain': [('', [UUID, 'vm', [], []])],
    'AdoptDomain': [('', [UUID, 'vm', [], []])],
    'ReleaseDomain': [('', [UUID])],
    'Explain': [('', [[{'name': 'a', 'type': 'mtty-1'}]])],
    'Find': [('', ['mtty'])],
    'Bind': [('', ['vfio-pci'])],
    'SetNumVfs': [('', [0])],
    'SetVgpuType': [('', [0])],
}
for name in ('Check', 'Rescan', 'Reload', 'Reconcile', 'GetHolders', 'HostdevXml', 'NodedevXml', 'Remove', 'Release', 'Restore',
             'Configure'):
    SAMPLES[name] = [('', [])]
OBJECTS = {
    'Manager': [('', '')],
    'Parent': [],
    'Mdev': [("the owner's", 'mdev/' + owners_mdev), ("root's", 'mdev/' + roots_mdev)],
    'Claim': [("the owner's", 'claim/' + owners_claim), ("root's", 'claim/' + roots_claim)],
    'Function': [('', 'function/' + function)],
    'PhysicalFunction': [('', 'function/' + pf)],
    'VirtualFunction': [('', 'function/' + vf)],
}
READING = [('reading properties', '/org/mdevd1', 'org.freedesktop.DBus.ObjectManager', 'GetManagedObjects', None)]


def path(name):
    return ('/org/mdevd1/' + name.replace('-', '_').replace(':', '_').replace('.', '_')).rstrip('/')


def calls():
    yield from READING
    for file in sorted(glob.glob('/usr/share/dbus-1/interfaces/org.mdevd1.*.xml')):
        interface = ET.parse(file).find('interface')
        short = interface.get('name').removeprefix('org.mdevd1.')
        for method in interface.findall('method'):
            arguments = [arg for arg in method.findall('arg') if arg.get('direction') == 'in']
            signature = '(' + ''.join(arg.get('type') for arg in arguments) + ')'
            # A method that is new and is not above ends the test here.
            for whose, where in OBJECTS[short]:
                for what, values in SAMPLES[method.get('name')]:
                    values = list(values)
                    if arguments[-1].get('name') == 'options':
                        values.append({'no-such-option': GLib.Variant('b', True)})
                    row = ', '.join(filter(None, [short + '.' + method.get('name'), what, whose]))
                    yield row, path(where), interface.get('name'), method.get('name'), GLib.Variant(signature, tuple(values))


AGENT = Gio.DBusNodeInfo.new_for_xml('''<node><interface name='org.freedesktop.PolicyKit1.AuthenticationAgent'>
  <method name='BeginAuthentication'><arg type='s'/><arg type='s'/><arg type='s'/><arg type='a{ss}'/><arg type='s'/>
    <arg type='a(sa{sv})'/></method>
  <method name='CancelAuthentication'><arg type='s'/></method></interface></node>''')
# Root becomes them all, each in a process of its own; what takes long, to start a Python, is done once.
user = users[0]
if os.getuid() == 0:
    children = {}
    for user in users:
        child = os.fork()
        if child == 0:
            break
        children[child] = user
    else:
        failed = [children[child] for child, status in (os.wait() for _ in users) if status]
        sys.exit(f'failed as {failed}' if failed else 0)
    person = pwd.getpwnam(user)
    os.initgroups(person.pw_name, person.pw_gid)
    os.setgid(person.pw_gid)
    os.setuid(person.pw_uid)
prompt = user == 'prompt'

bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
asked = []


def agent(_bus, _sender, _path, _interface, method, parameters, invocation):
    """Notes what a person would read, and gives up."""
    if method == 'BeginAuthentication':
        asked.append(parameters.unpack()[1])
        invocation.return_dbus_error('org.freedesktop.PolicyKit1.Error.Cancelled', 'given up')
    else:
        invocation.return_value(None)


if prompt:
    bus.register_object('/agent', AGENT.interfaces[0], agent, None, None)
    start = int(open('/proc/self/stat').read().rpartition(')')[2].split()[19])
    process = ('unix-process', {'pid': GLib.Variant('u', os.getpid()), 'start-time': GLib.Variant('t', start),
                                'uid': GLib.Variant('i', os.getuid())})
    bus.call_sync('org.freedesktop.PolicyKit1', '/org/freedesktop/PolicyKit1/Authority', 'org.freedesktop.PolicyKit1.Authority',
                  'RegisterAuthenticationAgent', GLib.Variant('((sa{sv})ss)', (process, 'C', '/agent')), None, 0, -1, None)

cells = {}
loop = GLib.MainLoop()


def send(row, path, interface, method, body, tries=3):
    begin = time.monotonic()

    def answered(bus, result):
        try:
            bus.call_finish(result)
            cell = 'yes'
        except GLib.Error as error:
            name = (Gio.DBusError.get_remote_error(error) or error.message).removeprefix('org.mdevd1.Error.')
            cell = {'InvalidOption': 'yes', 'NotAuthorized': 'password' if asked else 'no'}.get(name, name)
        # polkitd 122 now and then takes a rule that has ended for one that never does, stands still for 15 s ("Terminating runaway
        # script" in its journal) and denies: it is asked again.
        if polkit_is in ('there', 'denying') and tries > 1 and time.monotonic() - begin > 9:
            asked.clear()
            return send(row, path, interface, method, body, tries - 1)
        cells[row] = cell + '\t' + ' / '.join(asked)
        asked.clear()
        if waiting:
            send(*waiting.pop(0))
        elif len(cells) == len(rows):
            loop.quit()
    flags = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION if prompt else Gio.DBusCallFlags.NONE
    bus.call('org.mdevd1', path, interface, method, body, None, flags, 60000, None, answered)


rows = list(calls())
waiting = list(rows)
for _ in range(min(in_flight, len(waiting))):
    send(*waiting.pop(0))
loop.run()
with open(f'/tmp/{user}.cells', 'w') as file:
    for row, *_ in rows:
        print(row + '\t' + cells[row], file=file)
PYTHON
}

# table COLUMN...: of the callers' answers in /tmp/COLUMN.cells; a column's title follows its name after a colon.
table() {
  local column line='| method |' below='|---|'
  for column in "$@"; do line+=" ${column#*:} |" below+='---|'; done
  echo "$line"
  echo "$below"
  cut -f1 "/tmp/${1%%:*}.cells" >/tmp/table
  for column in "$@"; do
    cut -f2 "/tmp/${column%%:*}.cells" | paste -d'|' /tmp/table - >/tmp/table.new
    mv /tmp/table.new /tmp/table
  done
  sed 's/|/ | /g; s/^/| /; s/$/ |/' /tmp/table
}

# The tables are the end of docs/authorization.md. With UPDATE_GOLDEN=1 they are written there.
scenario_authorization_matrix() {
  local doc=$here/../../../docs/authorization.md state name objects
  local -A title=(
    [there]='polkit is there' [denying]='polkit denies everything' [absent]='polkit is not installed, or cannot start'
    [hanging]='polkit does not answer'
  )
  local columns=(root 'admin:administrator' 'ruled:user with the rule' owner 'ordinary:anybody else')
  trap 'polkit_as_before; no_people; kill $(jobs -p) 2>/dev/null' EXIT
  people
  write_caller
  must hostdevctl vfs $igb_pf 1
  polkit_is there
  objects=()
  for name in owner root; do
    mdev=$(uuid_of "$name")
    must as "$name" hostdevctl create mtty-1 --parent mtty --uuid "$mdev"
    objects+=("$mdev" "$(basename "$(grep -l "$mdev" $claims/*)" .json)")
  done
  objects+=("$nic" "$igb_pf" "$(vf_of $igb_pf 0)")
  host_facts >/tmp/before
  : >/tmp/matrix
  for state in there denying absent hanging; do
    polkit_is $state
    rm -f /tmp/*.cells
    must python3 $caller "${columns[*]%%:*}" $state "${objects[@]}"
    [ $state = there ] || echo >>/tmp/matrix
    printf '### When %s\n\n' "${title[$state]}" >>/tmp/matrix
    if [ $state = there ]; then
      must as admin python3 $caller prompt $state "${objects[@]}"
      cp /tmp/prompt.cells /tmp/prompts
      table "${columns[0]}" 'admin:administrator without a prompt' 'prompt:administrator with one' "${columns[@]:2}" >>/tmp/matrix
    else
      table "${columns[@]}" >>/tmp/matrix
    fi
  done
  polkit_is there
  host_facts | diff /tmp/before - >/tmp/changed || fail "what was denied has changed the host"$'\n'"$(cat /tmp/changed)"

  # what a person reads: of each call that is asked about, with the details in their places
  must awk -F'\t' '$2 == "password"' /tmp/prompts
  [ "$(wc -l <<<"$out")" -gt 10 ] || fail "a password is asked for too few of the calls"$'\n'"$(cat /tmp/prompts)"
  if grep -vP '\tAuthentication is required to [^$]*$' <<<"$out"; then fail "this is no message for a person"; fi
  matches 'SetNumVfs.*change the number of virtual functions of 0000:01:00.0 to 0' || fail "what is not said"$'\n'"$out"
  matches 'Bind.*take the device 0000:03:00.0 from its driver and bind it to vfio-pci' || fail "what is not said"$'\n'"$out"

  for name in owner root; do must hostdevctl remove --force "$(uuid_of $name)"; done
  must hostdevctl vfs $igb_pf 0
  eventually no_claims
  if [ -n "${UPDATE_GOLDEN:-}" ]; then
    sed -i '/^### When /,$d' "$doc"
    cat /tmp/matrix >>"$doc"
  fi
  sed -n '/^### When /,$p' "$doc" | diff - /tmp/matrix >/tmp/changed ||
    fail "docs/authorization.md says something else; UPDATE_GOLDEN=1 rewrites it"$'\n'"$(cat /tmp/changed)"
  sed 's/^/# /' /tmp/matrix
}

# A call that names no interface is stopped by the bus: its policy opens interface by interface.
scenario_authorization_without_an_interface() {
  must_fail_with 'AccessDenied.*rejected send message' runuser -u nobody -- python3 -c '
import dbus, dbus.lowlevel
call = dbus.lowlevel.MethodCallMessage("org.mdevd1", "/org/mdevd1", None, "Rescan")
call.append({}, signature="a{sv}")
dbus.SystemBus().send_message_with_reply_and_block(call, 20)'
}

# A rule by type lets create and remove that type, and nothing else, from the command line of an ordinary user.
scenario_authorization_rule_by_type() {
  local uuid
  trap 'polkit_as_before; no_people; kill $(jobs -p) 2>/dev/null' EXIT
  people
  polkit_is there
  uuid=$(uuid_of ruled)
  must_exit 4 as ruled hostdevctl create mtty-2
  must as ruled hostdevctl create mtty-1 --uuid "$uuid"
  must_exit 4 as ordinary hostdevctl remove "$uuid"
  must_exit 4 as owner hostdevctl remove "$uuid"
  must as ruled hostdevctl remove "$uuid"
  eventually not mdev_exists "$uuid"
  eventually no_claims
}
