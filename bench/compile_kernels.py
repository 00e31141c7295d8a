#!/usr/bin/env python3
"""Compiles the CUDA kernels with NVRTC, without a card, and prints registers, shared memory and spills of each.

    pip install nvidia-cuda-nvrtc==13.0.*
    python3 bench/compile_kernels.py --arch sm_80 sm_90a

Fails if a kernel does not compile or spills registers.
"""

import argparse
import ctypes
import importlib.util
import pathlib
import re
import sys

KERNELS = pathlib.Path(__file__).parent.parent / "crates" / "cuda" / "kernels"


def nvrtc():
    """Loads the library of the Python package."""
    for package in importlib.util.find_spec("nvidia").submodule_search_locations:
        for path in sorted(pathlib.Path(package).rglob("libnvrtc.so.*")):
            if "builtins" not in path.name:
                for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
                return ctypes.CDLL(str(path))
    sys.exit("NVRTC is missing: pip install nvidia-cuda-nvrtc")


class Program:
    """A kernel file."""

    def __init__(self, api, path):
        self.api = api
        self.handle = ctypes.c_void_p()
        headers = sorted(p for p in KERNELS.glob("*.cuh") if p != path)
        count = len(headers)
        self.check(
            api.nvrtcCreateProgram(
                ctypes.byref(self.handle),
                path.read_bytes(),
                path.name.encode(),
                count,
                (ctypes.c_char_p * count)(*(p.read_bytes() for p in headers)),
                (ctypes.c_char_p * count)(*(p.name.encode() for p in headers)),
            )
        )

    def check(self, result):
        if result != 0:
            self.api.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(self.api.nvrtcGetErrorString(result).decode())

    def log(self):
        size = ctypes.c_size_t()
        self.check(self.api.nvrtcGetProgramLogSize(self.handle, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self.check(self.api.nvrtcGetProgramLog(self.handle, text))
        return text.value.decode()

    def compile(self, arch):
        options = [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v"]
        encoded = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        result = self.api.nvrtcCompileProgram(self.handle, len(options), encoded)
        log = self.log()
        if result != 0:
            sys.exit(log)
        return log


def resources(log):
    """Returns (kernel, registers, spilled bytes, stack bytes, shared bytes) of each kernel."""
    found = []
    for part in log.split("Compiling entry function ")[1:]:
        def number(pattern):
            match = re.search(pattern, part)
            return int(match.group(1)) if match else 0

        found.append(
            (
                re.match(r"'(\w+)'", part).group(1),
                number(r"Used (\d+) registers"),
                number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
                number(r"(\d+) bytes stack frame"),
                number(r"(\d+) bytes smem"),
            )
        )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90a"])
    arguments = parser.parse_args()
    api = nvrtc()
    seen, spilled = set(), []
    print(f"{'kernel':32} {'arch':>8} {'registers':>10} {'spilled':>8} {'stack':>6} {'shared':>7}")
    for path in sorted(KERNELS.glob("*.cuh")):
        if "KERNEL(" not in path.read_text().replace("#define KERNEL(", ""):
            continue
        for arch in arguments.arch:
            for kernel, registers, spills, stack, shared in resources(Program(api, path).compile(arch)):
                # Files include others.
                if (kernel, arch) in seen:
                    continue
                seen.add((kernel, arch))
                print(f"{kernel:32} {arch:>8} {registers:10} {spills:8} {stack:6} {shared:7}")
                if spills:
                    spilled.append(f"{kernel} ({arch})")
    defined = {
        name
        for path in KERNELS.glob("*.cuh")
        for name in re.findall(r"^KERNEL\((\w+),", path.read_text(), re.M)
    }
    missing = {(name, arch) for name in defined for arch in arguments.arch} - seen
    if missing:
        sys.exit(f"the compiler reports nothing of {sorted(missing)}")
    if spilled:
        sys.exit("registers are spilled: " + ", ".join(spilled))


if __name__ == "__main__":
    main()
