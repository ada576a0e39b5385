"""The C interface of graft from Python, without torch: embed.py LIBGRAFT MODEL."""
import ctypes
import json
import sys

graft = ctypes.CDLL(sys.argv[1])
graft.graft_version.restype = ctypes.c_char_p
graft.graft_output_width.restype = ctypes.c_int64
graft.graft_output_width.argtypes = [ctypes.c_void_p]
graft.graft_free_model.argtypes = graft.graft_free_text.argtypes = [ctypes.c_void_p]


def call(function, *arguments):
    """Calls a function that returns a code; what it says becomes an exception."""
    message = ctypes.create_string_buffer(1024)
    if function(*arguments, message, ctypes.c_size_t(len(message))):
        raise RuntimeError(message.value.decode())


class Model:
    def __init__(self, folder, **options):
        self.handle = ctypes.c_void_p()
        call(graft.graft_load, folder.encode(), json.dumps(options).encode(), None,
             ctypes.byref(self.handle))
        self.width = graft.graft_output_width(self.handle)

    def __call__(self, ids):
        """Logits of one sequence, a list for each token."""
        output = (ctypes.c_float * (len(ids) * self.width))()
        call(graft.graft_forward, self.handle, (ctypes.c_int64 * len(ids))(*ids),
             ctypes.c_int64(1), ctypes.c_int64(len(ids)), output, ctypes.c_size_t(len(output)))
        return [output[i:i + self.width] for i in range(0, len(output), self.width)]

    def __del__(self):
        graft.graft_free_model(self.handle)


model = Model(sys.argv[2], quantization_config={"quant_method": "bitsandbytes",
                                                "load_in_4bit": True})
logits = model([1, 2, 3, 4])
print("graft", graft.graft_version().decode())
print("logits:", len(logits), "x", len(logits[0]))
