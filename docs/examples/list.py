#!/usr/bin/python3
"""Prints what mdevd knows: the parents with their types, the devices, and who has them."""

import dbus

bus = dbus.SystemBus()
manager = bus.get_object('org.mdevd1', '/org/mdevd1')
objects = manager.GetManagedObjects(dbus_interface='org.freedesktop.DBus.ObjectManager')

for path, interfaces in sorted(objects.items()):
    if parent := interfaces.get('org.mdevd1.Parent'):
        for kind in parent['Types']:
            print(f"{parent['Name']}: {kind['available']} free of type {kind['id']}")
    if function := interfaces.get('org.mdevd1.Function'):
        print(f"{function['Address']}: {function['Verdict']}, driver {function['Driver'] or 'none'}")
    if claim := interfaces.get('org.mdevd1.Claim'):
        devices = ', '.join(grant['device'] for grant in claim['Grants'])
        print(f"{claim['OwnerKind']} {claim['OwnerName']}: {claim['State']}, {devices}")
