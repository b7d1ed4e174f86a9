#!/usr/bin/python3
"""What a program does that starts VMs without libvirt: orchestrate.py TYPE. Only root may."""

import os
import sys
import uuid

import dbus

domain = uuid.uuid4()                   # the VM; its claim has the same UUID
device = uuid.uuid5(domain, 'gpu0')     # any UUID; the same at every start of the VM

with open('/proc/self/stat', encoding='ascii') as stat:
    start_time = int(stat.read().rpartition(')')[2].split()[19])

bus = dbus.SystemBus()
manager = dbus.Interface(bus.get_object('org.mdevd1', '/org/mdevd1'), 'org.mdevd1.Manager')
text, options = {'signature': 'ss'}, {'signature': 'sv'}
try:
    grants = manager.PrepareDomain(
        str(domain), 'vm1',
        [dbus.Dictionary({'name': 'gpu0', 'type': sys.argv[1]}, **text)],
        [dbus.Dictionary({'kind': 'mdev', 'uuid': str(device)}, **text)],
        # As long as this process lives the claim is kept, although nobody has the device open yet.
        dbus.Dictionary({'timeout-ms': dbus.UInt32(8000), 'pid': dbus.UInt32(os.getpid()),
                         'start-time': dbus.UInt64(start_time)}, **options),
        timeout=10)
except dbus.DBusException as error:
    sys.exit(f'the VM cannot start: {error.get_dbus_message()}')

for grant in grants:
    print(f"{grant['request']} is {grant['device']}, /sys/bus/mdev/devices/{grant['uuid']}")
claim = bus.get_object('org.mdevd1', grants[0]['claim'])
run = claim.Get('org.mdevd1.Claim', 'Run', dbus_interface='org.freedesktop.DBus.Properties')

# Here QEMU would run, and open the device.

# With its run, so that a word that comes late never ends the next start's claim.
ended = manager.ReleaseDomain(str(domain), dbus.Dictionary({'run': run, 'reason': 'shutdown'}, **options), timeout=10)
print('given back' if ended else 'had been given back already')
