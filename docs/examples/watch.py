#!/usr/bin/python3
"""Prints what changes, as mdevd announces it, until it is interrupted."""

import dbus
import dbus.mainloop.glib
from gi.repository import GLib

dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.SystemBus()


def added(path, interfaces):
    print('added', path, *interfaces, flush=True)


def removed(path, interfaces):
    print('removed', path, *interfaces, flush=True)


def changed(interface, properties, _invalidated, path):
    for name, value in properties.items():
        print('changed', path, name, value, flush=True)


of_mdevd = {'bus_name': 'org.mdevd1'}
manager = {'dbus_interface': 'org.freedesktop.DBus.ObjectManager', **of_mdevd}
bus.add_signal_receiver(added, 'InterfacesAdded', **manager)
bus.add_signal_receiver(removed, 'InterfacesRemoved', **manager)
bus.add_signal_receiver(changed, 'PropertiesChanged', 'org.freedesktop.DBus.Properties', path_keyword='path', **of_mdevd)
print('watching', flush=True)
GLib.MainLoop().run()
