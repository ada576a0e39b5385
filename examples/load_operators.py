"""load_operators(file): the operators of a plugin in torch.ops, by the torch that graft was built with."""
import ctypes

import torch  # before the plugin: it brings LibTorch


class Error(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint32), ("message", ctypes.c_char * 1020)]


class Plugin(ctypes.Structure):  # graft_plugin of plugin_abi.h, up to what is needed
    _fields_ = [("size", ctypes.c_uint32), ("data", ctypes.c_void_p * 4),
                ("counts", ctypes.c_uint32 * 2),
                ("init", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Error)))]


def load_operators(file):
    """Operators are registered by the plugin's init, so loading the file alone shows none."""
    entry = ctypes.CDLL(file).graft_plugin_entry
    entry.restype = ctypes.POINTER(Plugin)
    plugin, error = entry(1, 0), Error(size=ctypes.sizeof(Error))
    if not plugin or plugin.contents.init(None, ctypes.byref(error)):
        raise RuntimeError(f"{file}: {error.message.decode() or 'it is for another ABI'}")
