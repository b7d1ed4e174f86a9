# mdevd is killed at any point, and the host is right again afterwards.

# Another hook holds `start` for 5 s, while nobody has the device open and libvirt has no status file yet. Neither reconcile
# nor a daemon that comes back may take the device for abandoned.
scenario_slow_start() {
  local vm loop killed=
  second_hook <<'HOOK'
[ "$2" = start ] || exit 0
touch /tmp/in-start
sleep 5
rm /tmp/in-start
HOOK
  define_tty slow1
  virsh start slow1 >/tmp/slow1.out 2>&1 &
  vm=$!
  eventually test -e /tmp/in-start
  (while [ -e /tmp/in-start ]; do hostdevctl reconcile; done) >/tmp/reconcile.out 2>&1 &
  loop=$!
  while [ -e /tmp/in-start ]; do
    [ -n "$killed" ] || { must kill -9 "$(mdevd_pid)"; killed=1; must systemctl restart mdevd; }
    mdev_exists "$mdev" || fail "the mdev went away while the VM was starting"$'\n'"$(cat /tmp/reconcile.out)"
    sleep 0.1
  done
  wait $vm || fail "virsh start: $(cat /tmp/slow1.out)"
  wait $loop
  grep -q '^keep' /tmp/reconcile.out || fail "no look kept its claim: $(cat /tmp/reconcile.out)"
  runs_with slow1 "$mdev"
  destroy slow1
  released slow1 "$mdev"
}

# kill_at SYSCALLS N CMD...: runs CMD while mdevd is killed as it begins its Nth of these system calls, then has systemd start it
# again. CMD's exit status, which may be any, is in $status. Returns 1 if there was no Nth such call: mdevd was not killed.
kill_at() {
  local calls=$1 n=$2 pid tracer
  shift 2
  pid=$(mdevd_pid)
  strace -qq -o /dev/null -e trace="$calls" -e inject="$calls:signal=SIGKILL:when=$n" -p "$pid" 2>/tmp/strace.err &
  tracer=$!
  eventually grep -q "^TracerPid:[[:space:]]*$tracer" "/proc/$pid/status"
  status=0
  "$@" >/tmp/killed-command.out 2>&1 || status=$?
  if [ "$(mdevd_pid)" = "$pid" ] && kill -0 "$pid" 2>/dev/null; then
    kill $tracer
    wait $tracer 2>/dev/null
    return 1
  fi
  wait $tracer 2>/dev/null
  must systemctl reset-failed mdevd
  must systemctl start mdevd
}

# Where mdevd is killed: before a file of its own is renamed into place (a claim is planned, a step done, ready, releasing), before
# a writer is started, before a file is removed (of the last attempt, of a writer that has ended, of a claim that has), before
# anything is said on the bus (the reply as well).
kill_points=(rename clone,clone3,vfork unlink sendmsg)

# at_every_point WHAT BEFORE CMD AFTER: for each point: BEFORE, CMD while mdevd is killed there, AFTER.
at_every_point() {
  local what=$1 before=$2 command=$3 after=$4 calls n total=0
  for calls in "${kill_points[@]}"; do
    for ((n = 1; ; n++)); do
      [ $n -lt 40 ] || fail "no end of '$calls'"
      $before
      kill_at "$calls" $n $command || break
      $after
    done
    [ $n -gt 1 ] || fail "mdevd makes no '$calls' in $what: the kills missed"
    total=$((total + n - 1))
    $after
  done
  released kill1
  say "mdevd was killed at each of $total points of $what"
}

# as_libvirt OP SUBOP: the hook for the domain kill1, run as libvirt runs it.
as_libvirt() { $hooks/mdevd kill1 "$1" "$2" - </tmp/kill1.xml; }

define_kill1() {
  first=$(derived_uuid kill1 tty0) second=$(derived_uuid kill1 tty1)
  define kill1 request='name="tty0" type="mtty-1"' request='name="tty1" type="mtty-2"' hostdev="$first" hostdev="$second"
  must systemctl start mdevd
}

scenario_killed_in_prepare() {
  local first second status
  define_kill1
  at_every_point 'a prepare with two requests' true 'as_libvirt prepare begin' prepared_or_not
}

# A prepare that succeeded has made all there is to make; one that failed nothing that stays after the release, which libvirt sends
# in both cases.
prepared_or_not() {
  if [ $status = 0 ]; then
    [ "$(claim_state kill1)" = ready ] || fail "the claim is $(claim_state kill1)"
    [ "$(mdev_type "$first")" = mtty-1 ] || fail "the first mdev is a $(mdev_type "$first")"
    [ "$(mdev_type "$second")" = mtty-2 ] || fail "the second mdev is a $(mdev_type "$second")"
  fi
  must as_libvirt release end
  nothing_left
}

nothing_left() {
  eventually not has_claim kill1
  eventually not mdev_exists "$first"
  eventually not mdev_exists "$second"
}

scenario_killed_in_release() {
  local first second status
  define_kill1
  at_every_point 'a release of two devices' 'must as_libvirt prepare begin' release_and_wait nothing_left
}

# `release` is answered before everything is freed: wait for the rest, or for the daemon's death.
release_and_wait() {
  local pid
  pid=$(mdevd_pid)
  as_libvirt release end
  eventually sh -c "! [ -e $(claim_file kill1) ] || [ \"\$(systemctl show -P MainPID mdevd)\" != $pid ]"
}

# The same through virsh, once each way.
scenario_killed_under_virsh() {
  local first second status
  define_kill1
  kill_at rename 2 virsh start kill1 || fail "mdevd was not killed"
  if [ $status = 0 ]; then
    runs_with kill1 "$first" mtty-1
    runs_with kill1 "$second" mtty-2
  else
    released kill1 "$first" "$second"
    start kill1
  fi
  kill_at unlink 1 virsh destroy kill1 || fail "mdevd was not killed"
  [ $status = 0 ] || fail "virsh destroy: $(cat /tmp/killed-command.out)"
  released kill1 "$first" "$second"
}

# libvirtd is killed while our hook has answered and another one still runs: no `release` ever comes.
scenario_libvirtd_killed_in_prepare() {
  second_hook <<'HOOK'
[ "$2" = prepare ] || exit 0
touch /tmp/in-prepare
sleep 3
HOOK
  define_tty orph1
  virsh start orph1 >/dev/null 2>&1 &
  eventually test -e /tmp/in-prepare
  eventually has_claim orph1
  must systemctl kill --kill-whom=main -s KILL libvirtd # the hook lives on
  rm $hooks/zz-second
  eventually shut_off orph1
  # nobody says that the run has ended: mdevd finds it out
  eventually 90 sh -c "hostdevctl reconcile; ! [ -e $(claim_file orph1) ]"
  released orph1 "$mdev"
}

# libvirtd is killed while our hook waits for mdevd, which hears of the start only afterwards: nobody waits for it any more.
scenario_orphaned_prepare_speaks_late() {
  define_tty orph2
  must systemctl start mdevd
  must kill -STOP "$(mdevd_pid)"
  virsh start orph2 >/dev/null 2>&1 &
  eventually pgrep -f 'mdevd-hook orph2 prepare'
  must systemctl kill --kill-whom=main -s KILL libvirtd
  must kill -CONT "$(mdevd_pid)"
  eventually not pgrep -f 'mdevd-hook orph2 prepare'
  eventually shut_off orph2
  released orph2 "$mdev"
  start orph2
  runs_with orph2 "$mdev"
  destroy orph2
  released orph2 "$mdev"
}

# The hook of a `release` outlives its libvirtd and speaks when the next run of the domain has begun: that keeps its device.
scenario_orphaned_release_speaks_late() {
  define_tty orph3
  start orph3
  mv /usr/bin/mdevd-hook /usr/bin/mdevd-hook.real
  cat >/usr/bin/mdevd-hook <<'HOOK'
#!/bin/bash
if [ "$2" = release ] && ! [ -e /tmp/late ]; then
  touch /tmp/late
  until [ -e /tmp/speak ]; do sleep 0.1; done
fi
/usr/bin/mdevd-hook.real "$@"
HOOK
  chmod 755 /usr/bin/mdevd-hook
  rm -f /tmp/late /tmp/speak
  virsh destroy orph3 >/dev/null 2>&1 &
  eventually test -e /tmp/late
  must systemctl kill --kill-whom=main -s KILL libvirtd
  eventually shut_off orph3
  start orph3 # ends the run before, whose release has not come
  runs_with orph3 "$mdev"
  touch /tmp/speak
  eventually not pgrep -f 'mdevd-hook.* orph3 release'
  mv /usr/bin/mdevd-hook.real /usr/bin/mdevd-hook
  must hostdevctl reconcile
  runs_with orph3 "$mdev"
  destroy orph3
  released orph3 "$mdev"
}
