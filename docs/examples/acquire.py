#!/usr/bin/python3
"""Claims a device of a type, prints its element for a VM, and gives it back: acquire.py TYPE"""

import sys

import dbus

PATIENCE = 60  # seconds: a person may have to type a password first

bus = dbus.SystemBus()
manager = dbus.Interface(bus.get_object('org.mdevd1', '/org/mdevd1'), 'org.mdevd1.Manager')
request = dbus.Dictionary({'name': 'gpu0', 'type': sys.argv[1]}, signature='ss')
options = dbus.Dictionary({'label': 'an example'}, signature='sv')
nothing = dbus.Dictionary(signature='sv')
try:
    path = manager.Acquire([request], options, timeout=PATIENCE)
    claim = dbus.Interface(bus.get_object('org.mdevd1', path), 'org.mdevd1.Claim')
    print(claim.HostdevXml(nothing))
    claim.Release(nothing, timeout=PATIENCE)
except dbus.DBusException as error:
    # The name is for the program, the message for people.
    if error.get_dbus_name() == 'org.mdevd1.Error.NoCapacity':
        sys.exit(f'all are taken: {error.get_dbus_message()}')
    sys.exit(f'{error.get_dbus_name()}: {error.get_dbus_message()}')
