# The pages for people, followed command by command as they are printed. What a page's source may say is in CONTRIBUTING.md;
# tests/tests/docs.rs sees that no page with commands is without a scenario here.

desk=/tmp/docs # where whoever follows a page sits

# What virt-install puts into a VM.
libosinfo='<libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
  <libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo>'

# What the pages call by the names of a big host, by those of this one.
names() { # PAGE
  sed "s/0000:41:00\.0/$nic/g; s/0000:3b:00\.0/$igb_pf/g; s/0000:3b:10\.0/0000:01:10.0/g; s/0000:81:00\.0/mtty/g
    s/_30000_3a81_3a00_2e0/mtty/g; s/nvidia-63/mtty-1/g; s/bus='0x41'/bus='0x03'/; s/bus='0x3b'/bus='0x01'/" "$1"
}

# parts PAGE: what it consists of, a line each, KIND and text: a command of an ordinary `user` or of `root`, whether it
# `fails`, what it `shows`; a `file` that the reader writes and the `text` in it; what is `left` out, and why.
parts() {
  names "$1" | awk -v newcomer="${newcomer:-}" '
    { line = $0 }
    inside && plain { while (sub(/\\$/, "", line) && (getline more) > 0) { sub(/^ +/, "", more); line = line more } }
    /^```/ { inside = !inside; plain = $0 == "```"; if (!inside) why = file = fails = ""; next }
    inside && file != "" { print "text\t" line; next }
    inside && plain && why != "" { if (line ~ /^[$#] /) print "left\t" why; next }
    inside && plain && line ~ /^[$#] / {
      print (line ~ /^#/ ? "root" : "user") "\t" substr(line, 3)
      if (fails) print "fails"
      next
    }
    inside && plain { print "shows\t" line; next }
    inside { next }
    /^<!-- not run: tests.lab.newcomer runs it in this place/ && newcomer { next }
    /^<!-- not run: .* -->$/ { why = substr(line, 15, length(line) - 18); next }
    /^<!-- file: .* -->$/ { file = substr(line, 12, length(line) - 15); print "file\t" file; next }
    /^<!-- fails -->$/ { fails = 1; next }
    NF { why = file = fails = "" }'
}

# pattern LINE: an extended regular expression for a line that a page shows: `…` is anything, a gap is as wide as it comes.
pattern() { sed 's/[][\\.*^$+?(){}|]/\\&/g; s/…/.*/g; s/  */ +/g; s/^ +//' <<<"$1"; }

# shows EXPECTED FILE: each line that a page shows is in what was printed.
shows() {
  local line
  while IFS= read -r line; do
    [ -z "$line" ] || grep -qE -- "$(pattern "$line")" "$2" || { echo "not printed: $line"; return 1; }
  done <<<"$1"
}

# obey WHO COMMAND FAILS EXPECTED: runs it, and holds it to what the page shows.
obey() {
  local who=$1 command=$2 fails=$3 expected=$4 status=0 printed=/tmp/docs.printed line
  echo "$who: $command"
  if [[ $command = 'busctl monitor '* || $command = *watch.py ]]; then
    watch "$who" "$command" "$expected"
    return
  fi
  # It ends by itself two minutes after the last call, and starts with the next.
  [[ $command != 'systemctl '*' libvirtd' ]] || must systemctl stop libvirtd.service
  cd $desk
  if [ "$who" = root ]; then
    EDITOR=$desk/editor bash -c "$command" </dev/null >$printed 2>&1 || status=$?
  else
    runuser -u nobody -- bash -c "$command" </dev/null >$printed 2>&1 || status=$?
  fi
  cd "$OLDPWD"
  out=$(<$printed)
  [ $((status != 0)) = $fails ] || fail "exit status $status from: $command"$'\n'"$out"
  line=$(shows "$expected" $printed) || fail "$line"$'\n'"by: $command"$'\n'"$out"
  case $fails$command in
    0'hostdevctl xml --domain '*) # what a person copies
      sed -n '/^<metadata>$/,/^<\/metadata>$/p' $printed >>$desk/metadata
      sed -n '/<hostdev/,/<\/hostdev>/p' $printed >>$desk/devices ;;
    0'virsh edit vm1')
      must virsh dumpxml --inactive vm1
      for line in '<libosinfo:os ' '<mdevd:request '; do
        expected=$(cat $desk/metadata /tmp/vm1.xml | grep -o "$line" | wc -l)
        [ "$(grep -o "$line" <<<"$out" | wc -l)" = "$expected" ] || fail "there should be $expected of $line"$'\n'"$out"
      done ;;
    0'virsh start vm1')
      running vm1 || fail "vm1 is $(virsh domstate vm1)"
      has_claim vm1 || fail "vm1 runs without a claim" ;;
    1'virsh start vm1') shut_off vm1 || fail "vm1 is $(virsh domstate vm1)" ;;
    0'virsh destroy vm1') released vm1 ;;
  esac
}

# watch WHO COMMAND EXPECTED: what listens never ends by itself: it runs while somebody makes a device and removes it.
watch() {
  local heard=/tmp/docs.heard pid uuid as=()
  [ "$1" = root ] || as=(runuser -u nobody --)
  : >$heard
  # shellcheck disable=SC2086 # its words
  (cd $desk && exec "${as[@]}" $2) >$heard 2>&1 &
  pid=$!
  eventually grep -qi -e monitoring -e watching $heard
  uuid=$(hostdevctl create mtty-1) || fail "no device is made: $uuid"
  must hostdevctl remove "$uuid"
  eventually shows "$3" $heard
  kill $pid
  wait $pid 2>/dev/null
  :
}

# An editor for `virsh edit`: puts what was copied where PAGE says. Where that does not say what becomes of a <metadata> that is
# there already, each piece is pasted whole.
make_editor() { # PAGE
  # shellcheck disable=SC2016 # as the page has it
  local merge='put only `<mdevd:devices>` into it; if that is there too, only the `<mdevd:request>`'
  ! tr '\n' ' ' <"$1" | grep -qF "$merge" || : >$desk/merges
  cat >$desk/editor <<'PYTHON'
#!/usr/bin/python3
import os, re, sys

def read(name):
    with open(name) as file:
        return file.read()

def paste(piece, below, xml):
    return re.sub(below, lambda found: found[0] + piece, xml, count=1)

xml = read(sys.argv[1])
for whole in re.findall('<metadata>.*?</metadata>', read('/tmp/docs/metadata'), re.S):
    if '<metadata>' not in xml or not os.path.exists('/tmp/docs/merges'):
        xml = paste(whole, '<domain [^>]*>', xml)
    elif '<mdevd:devices' not in xml:
        xml = paste(re.search('<mdevd:devices.*</mdevd:devices>', whole, re.S)[0], '<metadata>', xml)
    else:
        xml = paste(''.join(re.findall('<mdevd:request[^>]*>', whole)), '<mdevd:devices[^>]*>', xml)
with open(sys.argv[1], 'w') as file:
    file.write(xml.replace('<devices>', '<devices>' + read('/tmp/docs/devices'), 1))
PYTHON
  chmod 755 $desk/editor
}

# follow PAGE: does what it says, in its order, as somebody who sits at the desk and has a VM called vm1.
follow() {
  local kind text who='' command='' fails=0 expected='' file='' written=() run=0 left=()
  rm -rf $desk && mkdir -m 777 $desk
  : >$desk/metadata && : >$desk/devices
  make_editor "$1"
  [ -z "${newcomer:-}" ] || cp "$newcomer"/*.deb $desk/
  mkdir $desk/docs && cp -r docs/examples $desk/docs/
  must modprobe vfio-pci
  define vm1 metadata="$libosinfo"
  while IFS=$'\t' read -r kind text <&3; do
    if [[ $kind != shows && $kind != fails && -n $command ]]; then
      obey "$who" "$command" $fails "$expected"
      run=$((run + 1)) command='' fails=0 expected=''
    fi
    case $kind in
      user | root) who=$kind command=$text ;;
      fails) fails=1 ;;
      shows) expected+=$text$'\n' ;;
      file)
        file=$text
        [ "${file::1}" = / ] || file=$desk/$file
        written+=("$file")
        mkdir -p "$(dirname "$file")"
        : >"$file" ;;
      text) printf '%s\n' "$text" >>"$file" ;;
      left) left+=("$text") ;;
    esac
  done 3< <(parts "$1"; echo end)
  [ $run != 0 ] || fail "$1 has no command that is run"
  say "$1: $run commands run, ${#left[@]} not run"
  [ ${#left[@]} = 0 ] || printf '%s\n' "${left[@]}" | sort | uniq -c | sed 's/^ */#   /'
  rm -f "${written[@]}"
}

# With $newcomer set, in a guest that has nothing but the packages, also the blocks which only that guest runs: tests/lab/newcomer.
scenario_docs_readme() {
  follow README.md
}

scenario_docs_give_a_vm_a_device() {
  function_facts $nic >/tmp/before
  follow docs/give-a-vm-a-device.md
  matches vm1 || fail "the last command does not name the VM"$'\n'"$out"
  has_function vm1 $nic
  has_function vm1 0000:01:10.0
  destroy vm1
  released vm1
  as_before $nic /tmp/before
  must hostdevctl vfs $igb_pf 0
}

scenario_docs_administrators() {
  up $igb_pf
  follow docs/administrators.md
  must systemctl reload mdevd
}

scenario_docs_libvirt_users() {
  up $igb_pf
  follow docs/libvirt-users.md
}

scenario_docs_dbus_clients() {
  follow docs/dbus-clients.md
}
