# The numbers for Prometheus, as the unit of the timer writes them: with next to no rights, and without starting mdevd.

metrics_folder=/var/lib/prometheus/node-exporter
metrics_drop_in=/run/systemd/system/mdevd-metrics.service.d/scenario.conf
metrics_timer_drop_in=/run/systemd/system/mdevd-metrics.timer.d/scenario.conf

metrics_say() { grep -qx -- "$2" "$1"; }

scenario_metrics() {
  trap 'systemctl stop mdevd-metrics.timer
    rm -rf "${metrics_folder%/*}" /srv/collector "${metrics_drop_in%/*}" "${metrics_timer_drop_in%/*}"
    systemctl daemon-reload
    systemctl reset-failed mdevd-metrics' EXIT
  # without the folder it says so, and not every minute of the day: the timer is off until somebody switches it on
  [ "$(systemctl is-enabled mdevd-metrics.timer)" = disabled ] || fail "the timer is $(systemctl is-enabled mdevd-metrics.timer)"
  must systemctl start mdevd
  must_exit 1 systemctl start mdevd-metrics
  eventually journal_of_metrics 'cannot write .*mdevd.prom: No such file'

  # the folder as another program's user has it
  must install -d -o nobody -m 755 $metrics_folder
  define_tty metrics1
  start metrics1
  must systemctl start mdevd-metrics
  metrics_say $metrics_folder/mdevd.prom 'mdevd_up 1' || fail "mdevd is not up"$'\n'"$(cat $metrics_folder/mdevd.prom)"
  metrics_say $metrics_folder/mdevd.prom 'mdevd_claims{owner="domain",state="ready"} 1' || fail "no claim"$'\n'"$(cat $metrics_folder/mdevd.prom)"
  metrics_say $metrics_folder/mdevd.prom 'mdevd_mdev_type_used{parent="mtty",type="mtty-1",name=".*"} 1' || fail "no mdev"
  [ "$(stat -c %a:%U $metrics_folder/mdevd.prom)" = 644:root ] || fail "the file is $(stat -c %a:%U $metrics_folder/mdevd.prom)"
  destroy metrics1
  released metrics1 "$mdev"

  # the timer does it every minute; here it is in more of a hurry
  must_print 'OnCalendar=\*-\*-\* \*:\*:00 ' systemctl show -P TimersCalendar mdevd-metrics.timer
  mkdir -p "${metrics_timer_drop_in%/*}"
  printf '%s\n' '[Timer]' OnCalendar= 'OnCalendar=*:*:0/3' AccuracySec=100ms >"$metrics_timer_drop_in"
  must systemctl daemon-reload
  must systemctl start mdevd-metrics.timer
  eventually metrics_say $metrics_folder/mdevd.prom 'mdevd_claims{owner="domain",state="ready"} 0'
  must systemctl stop mdevd-metrics.timer
  systemctl reset-failed mdevd-metrics # too many starts in a short time are not what is tested

  # without mdevd the file says so, nothing has failed, and nothing has been started
  must systemctl stop mdevd
  must systemctl start mdevd-metrics
  [ "$(grep -v '^#' $metrics_folder/mdevd.prom)" = 'mdevd_up 0' ] || fail "not only that it is down"$'\n'"$(cat $metrics_folder/mdevd.prom)"
  mdevd_is inactive || fail "asking for numbers started mdevd"
  [ "$(ls -A $metrics_folder)" = mdevd.prom ] || fail "something else is left there: $(ls -A $metrics_folder)"

  # another folder, as hostdevctl(1) says
  must install -d /srv/collector
  mkdir -p "${metrics_drop_in%/*}"
  printf '%s\n' '[Service]' Environment=MDEVD_METRICS_FILE=/srv/collector/mdevd.prom ReadWritePaths=/srv/collector >"$metrics_drop_in"
  must systemctl daemon-reload
  must systemctl start mdevd-metrics
  metrics_say /srv/collector/mdevd.prom 'mdevd_up 0' || fail "nothing in the other folder"

  must systemd-analyze security --no-pager mdevd-metrics
  say "$(grep Overall <<<"$out")"
  must systemctl start mdevd
}

journal_of_metrics() { journalctl -q -o cat -u mdevd-metrics | grep -E -- "$1"; }
