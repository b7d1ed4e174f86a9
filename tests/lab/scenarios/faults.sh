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
  runs_with slow1 "$mdev"
  destroy slow1
  released slow1 "$mdev"
}

# kill_at N CMD...: runs CMD while mdevd is killed as it renames a file for the Nth time (claims are written so: planned, a
# step done, ready, releasing, …). Whether CMD succeeds does not matter here. Fails if there is no Nth rename.
kill_at() {
  local n=$1 pid tracer
  shift
  pid=$(mdevd_pid)
  rm -f /tmp/strace.out
  strace -qq -o /tmp/strace.out -e trace=rename,renameat,renameat2 \
    -e inject=rename,renameat,renameat2:signal=SIGKILL:when="$n" -p "$pid" 2>/tmp/strace.err &
  tracer=$!
  eventually grep -q "^TracerPid:[[:space:]]*$tracer" "/proc/$pid/status"
  "$@" >/tmp/killed-command.out 2>&1
  if kill -0 "$pid" 2>/dev/null && [ "$(mdevd_pid)" = "$pid" ]; then
    kill $tracer
    wait $tracer 2>/dev/null
    return 1
  fi
  wait $tracer 2>/dev/null
  must systemctl reset-failed mdevd
  must systemctl start mdevd
}

scenario_killed_in_prepare() {
  local n first second
  first=$(derived_uuid kill1 tty0) second=$(derived_uuid kill1 tty1)
  define kill1 request='name="tty0" type="mtty-1"' request='name="tty1" type="mtty-2"' hostdev="$first" hostdev="$second"
  must systemctl start mdevd
  for ((n = 1; n < 9; n++)); do
    kill_at $n virsh start kill1 || break
    if running kill1; then
      runs_with kill1 "$first" mtty-1
      runs_with kill1 "$second" mtty-2
      destroy kill1
    fi
    released kill1 "$first" "$second"
  done
  [ $n -gt 2 ] || fail "mdevd wrote the claim only $((n - 1)) times in a start: the kills missed"
  say "mdevd was killed at each of the $((n - 1)) renames of a start with two requests"
  runs_with kill1 "$first" mtty-1 # the last start was left alone
  destroy kill1
  released kill1 "$first" "$second"
}

scenario_killed_in_release() {
  local n first second
  first=$(derived_uuid kill2 tty0) second=$(derived_uuid kill2 tty1)
  define kill2 request='name="tty0" type="mtty-1"' request='name="tty1" type="mtty-2"' hostdev="$first" hostdev="$second"
  must systemctl start mdevd
  for ((n = 1; n < 9; n++)); do
    start kill2
    runs_with kill2 "$first" mtty-1
    kill_at $n release_and_wait kill2 || break
    released kill2 "$first" "$second"
  done
  [ $n -gt 1 ] || fail "mdevd did not write the claim in a release: the kills missed"
  say "mdevd was killed at each of the $((n - 1)) renames of a release with two requests"
  released kill2 "$first" "$second"
}

# `release` is answered before everything is freed: wait for the rest, or for the daemon's death.
release_and_wait() {
  local pid
  pid=$(mdevd_pid)
  virsh destroy "$1"
  eventually sh -c "! [ -e $(claim_file "$1") ] || [ \"\$(systemctl show -P MainPID mdevd)\" != $pid ]"
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
