# Every method and every property of the running daemon is given values that are right by type and else are not, by root and by an
# ordinary user: it neither dies nor hangs, and what the ordinary user does changes nothing.

fuzzer=/tmp/fuzzer.py

# write_fuzzer: `fuzzer.py SEED ITERATIONS OBJECT...` goes through every interface of these objects as they introspect. It says what it
# has done, and fails with what must not be: no answer, an answer that no service would give, a message that is unfit to be shown, or
# a call that needs a right and was let pass without root.
write_fuzzer() {
  cat >$fuzzer <<'PYTHON'
import collections, glob, os, random, sys, time
import xml.etree.ElementTree as ET
from gi.repository import Gio, GLib

seed, iterations, objects = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
chance = random.Random(seed)
BUS, IN_FLIGHT, PATIENCE = 'org.mdevd1', 16, 45000
PROPERTIES = 'org.freedesktop.DBus.Properties'

WORDS = '''mtty mtty-1 mtty-2 mtty-7 0000:03:00.0 0000:03:00 0000:01:00.0 0000:ff:1f.7 ffffffff:00:00.0 vfio-pci e1000e igb mdev pci vf
c2177883-f1bb-47f0-914d-32a22e3a8804 00000000-0000-0000-0000-000000000000 C2177883-F1BB-47F0-914D-32A22E3A8804 52:54:00:aa:bb:cc
yes no on off auto enable 0 1 -1 7 8 64 65 4094 4095 4294967295 4294967296 18446744073709551616 1e9 0x10 010 NaN true
org.mdevd1.Manager NumVfs / . .. ../../etc/passwd %s%n%x $(reboot) ;reboot 'quoted' "quoted" <a>&b; \\ * ? ~ | -- --force -'''.split()
KEYS = '''force parent uuid attrs label timeout-ms pid start-time reason run device dry-run name kind type count numa-node address pf
vgpu-type driver managed mac vlan qos trust spoof-check min-rate max-rate link-state display ramfb guest-address boot-order rom-bar
rom-file pool alias model interface drivers-autoprobe'''.split()
ODD = ['', ' ', '\n', '\t', '\x1b[2J', '\x7f', '\u202e', '\ufeff', '\U0010ffff', 'ä' * 40, 'a' * 255, 'a' * 256, 'a' * 4096, '/' * 500,
       '\n' * 1000, 'x' * 60000, '0' * 100, ':' * 12, '-' * 36]
EDGES = {'y': (0, 255), 'n': (-2**15, 2**15 - 1), 'q': (0, 2**16 - 1), 'i': (-2**31, 2**31 - 1), 'u': (0, 2**32 - 1),
         'x': (-2**63, 2**63 - 1), 't': (0, 2**64 - 1)}


def text(words):
    kind = chance.random()
    if kind < .5:
        return chance.choice(words)
    if kind < .6:
        return chance.choice(ODD)
    if kind < .8:
        word = chance.choice(words)  # damaged
        at = chance.randrange(len(word) + 1)
        return word[:at] + chance.choice(['', 'x', '-', '\n', 'é', word]) + word[at + chance.randrange(2):]
    return ''.join(chr(chance.choice([chance.randrange(1, 128), chance.randrange(0xa0, 0xd7ff)])) for _ in range(chance.randrange(40)))


def value(signature, depth=0, key=False):
    """A value of one complete type."""
    kind = signature[0]
    if kind in EDGES:
        low, high = EDGES[kind]
        return GLib.Variant(kind, chance.choice([low, high, 0, 1, 2, 3, 7, chance.randint(low, high)]))
    if kind == 'b':
        return GLib.Variant('b', chance.random() < .5)
    if kind == 'd':
        return GLib.Variant('d', chance.choice([0., -1., float('inf'), float('nan'), chance.random()]))
    if kind == 's':
        return GLib.Variant('s', text(KEYS if key else WORDS))
    if kind == 'o':
        return GLib.Variant('o', chance.choice(['/', '/org/mdevd1', '/a' * 2000] + objects))
    if kind == 'g':
        return GLib.Variant('g', chance.choice(['', 's', 'a{sv}', '(' * 32 + 's' + ')' * 32]))
    if kind == 'v':
        some = ['s', 'u', 'b', 't', 'i', 'y', 'x', 'd', 'o', 'g', 'as', 'a(ss)', 'a{sv}', 'a{ss}', '(si)', 'v', 'ay']
        return GLib.Variant('v', value(chance.choice(some[:5] if depth > 8 or chance.random() < .7 else some), depth + 1))
    if signature.startswith('a{'):
        inner = signature[2:-1]
        count = chance.choice([0, 1, 1, 2, 3, 5])
        builder = GLib.VariantBuilder(GLib.VariantType(signature))
        for _ in range(count):
            builder.add_value(GLib.Variant.new_dict_entry(value(inner[0], depth + 1, True), value(inner[1:], depth + 1)))
        return builder.end()
    if kind == 'a':
        builder = GLib.VariantBuilder(GLib.VariantType(signature))
        for _ in range(chance.choice([0, 1, 2, 2, 3, 40 if depth < 2 else 1])):
            builder.add_value(value(signature[1:], depth + 1))
        return builder.end()
    return GLib.Variant.new_tuple(*(value(one, depth + 1) for one in split(signature[1:-1])))


def split(signature):
    """The complete types that follow one another."""
    found, at = [], 0
    while at < len(signature):
        end = at
        while signature[end] == 'a':
            end += 1
        level = 0
        while True:
            level += signature[end] in '({'
            level -= signature[end] in ')}'
            end += 1
            if level == 0:
                break
        found.append(signature[at:end])
        at = end
    return found


def needs_a_right():
    for file in glob.glob('/usr/share/dbus-1/interfaces/org.mdevd1.*.xml'):
        interface = ET.parse(file).find('interface')
        for method in interface.findall('method'):
            action = [a.get('value') for a in method.findall('annotation') if a.get('name') == 'org.mdevd1.Action']
            if action != ['org.mdevd1.inspect']:
                yield interface.get('name'), method.get('name')


bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
protected = set() if os.getuid() == 0 else set(needs_a_right())
answers, members, wrong, slowest = collections.Counter(), set(), [], (0, '')
loop = GLib.MainLoop()
flying = 0


def calls():
    for path in objects:
        found = bus.call_sync(BUS, path, 'org.freedesktop.DBus.Introspectable', 'Introspect', None, None, 0, PATIENCE, None)
        node = Gio.DBusNodeInfo.new_for_xml(found.unpack()[0])
        for interface in node.interfaces:
            if not interface.name.startswith(BUS) and path != objects[0]:
                continue  # the interfaces of every object are the bus library's, and the same everywhere
            for method in interface.methods:
                types = [arg.signature for arg in method.in_args]
                for _ in range(iterations if types else 1):
                    yield path, interface.name, method.name, GLib.Variant.new_tuple(*map(value, types))
            for property in interface.properties:
                members.add((interface.name, property.name))
                name = GLib.Variant('s', property.name)
                of = GLib.Variant('s', interface.name)
                yield path, PROPERTIES, 'Get', GLib.Variant.new_tuple(of, name)
                for signature in (property.signature, 's', 'v'):
                    yield path, PROPERTIES, 'Set', GLib.Variant.new_tuple(of, name, GLib.Variant.new_variant(value(signature)))


def answered(_bus, result, call_and_time):
    global flying, slowest
    flying -= 1
    (path, interface, method, body), began = call_and_time
    slowest = max(slowest, (time.monotonic() - began, f'{interface}.{method}'))
    try:
        bus.call_finish(result)
        name, message = 'success', ''
    except GLib.Error as error:
        name = Gio.DBusError.get_remote_error(error) or error.message
        Gio.DBusError.strip_remote_error(error)
        message = error.message
    answers[name] += 1
    members.add((interface, method))
    known = name == 'success' or name.startswith('org.mdevd1.Error.') or name in (
        'org.freedesktop.DBus.Error.' + end for end in ('InvalidArgs', 'UnknownProperty', 'UnknownInterface', 'UnknownObject',
                                                         'PropertyReadOnly', 'AccessDenied', 'NotSupported', 'UnknownMethod'))
    fit = len(message) < 4000 and all(c == '\n' or c.isprintable() or not c.isascii() for c in message)
    let_pass = (interface, method) in protected and name == 'success'
    if not known or not fit or let_pass:
        wrong.append(f'{path} {interface}.{method} {body.print_(True)[:300]}: {name}: {message[:300]!r}')
    fly()


def fly():
    global flying
    while flying < IN_FLIGHT and not wrong:
        call = next(todo, None)
        if call is None:
            break
        flying += 1
        path, interface, method, body = call
        bus.call(BUS, path, interface, method, body, None, Gio.DBusCallFlags.NONE, PATIENCE, None, answered,
                 (call, time.monotonic()))
    if flying == 0:
        loop.quit()


todo = calls()
fly()
loop.run()
print(f'seed {seed}: {sum(answers.values())} calls of {len(members)} methods and properties:',
      ', '.join(f'{name.rpartition(".")[2]} {count}' for name, count in answers.most_common()),
      '; the slowest took %.1f s: %s' % slowest)
if wrong:
    sys.exit('\n'.join(wrong))
PYTHON
}

# fuzz USER ITERATIONS OBJECT...: and the daemon lives, is the same, and answers.
fuzz() {
  local pid user=$1 began=$EPOCHREALTIME
  shift
  pid=$(mdevd_pid)
  must as "$user" timeout 200 python3 $fuzzer "${FUZZ_SEED:-$((RANDOM * 32768 + RANDOM))}" "$@"
  say "as $user, $out"
  within 5 hostdevctl list
  [ "$(mdevd_pid)" = "$pid" ] || fail "mdevd has another process now: $pid was killed"
  mdevd_is active || fail "mdevd is $(systemctl is-active mdevd)"
  [ "$(systemctl show -P NRestarts mdevd)" = 0 ] || fail "mdevd was started again"
  ! journalctl -q -o cat -u mdevd --since "@${began%.*}" | grep -iE 'panicked|segfault|core.?dump' || fail "mdevd panicked"
}

# fuzz_objects: of each kind of object one or two: those that the lab can do without. A function may be a disk or the lab's own
# console, and root may take any of them that the host can live without.
fuzz_objects() {
  must busctl tree --list org.mdevd1
  printf '%s\n' /org/mdevd1 /org/mdevd1/parent/mtty
  grep '/mdev/' <<<"$out" | head -1
  grep '/claim/' <<<"$out" | head -1
  for address in $nic $igb_pf "$(vf_of $igb_pf 0)"; do echo "/org/mdevd1/function/${address//[:.]/_}"; done
}

fuzz_scene() {
  write_fuzzer
  must systemctl restart mdevd
  must hostdevctl vfs $igb_pf 2
  must hostdevctl create mtty-1 --parent mtty --uuid "$(uuid_of fuzz1)"
  make_mdev mtty-2 >/dev/null
  eventually sh -c "busctl tree --list org.mdevd1 | grep $(tail -1 $made | tr - _)"
}

scenario_fuzz_as_an_ordinary_user() {
  fuzz_scene
  host_facts >/tmp/before
  # shellcheck disable=SC2046 # one word each
  fuzz nobody 12 $(fuzz_objects)
  host_facts | diff /tmp/before - >/tmp/changed || fail "an ordinary user has changed the host"$'\n'"$(cat /tmp/changed)"
  must hostdevctl remove "$(uuid_of fuzz1)"
  must hostdevctl vfs $igb_pf 0
}

scenario_fuzz_as_root() {
  local id
  fuzz_scene
  forget_made # root may take it away
  # shellcheck disable=SC2046 # one word each
  fuzz root 15 $(fuzz_objects)
  must hostdevctl reconcile
  must hostdevctl claims --json
  for id in $(jq -r '.[].id' <<<"$out"); do must hostdevctl release --force "$id"; done
  for id in $(mdevs); do must hostdevctl remove --force "$(basename "$id")"; done
  hostdevctl restore $nic
  must hostdevctl vfs $igb_pf 0
  eventually no_claims
  [ "$(driver_of $nic)" = e1000e ] || fail "$nic is on '$(driver_of $nic)' after a restore"
}
