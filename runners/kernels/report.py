"""What the compiled kernels are made of, read from their cubins; no GPU is needed.

    python -m runners kernels report [--json]

Each kernel's default launches are compiled ahead of time for the architectures. Registers come from cuobjdump, spills
(stores to and loads from local memory) and tensor-core instructions from the disassembly: ``ptxas -v`` on the PTX
disagrees with the cubin for sm_100.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runners.kernels.base import CompileVariant, KernelUnsupported, interpreted
from runners.kernels.registry import KERNELS

ARCHITECTURES = (80, 90, 100)
TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|IMMA|QGMMA|UTC\w*MMA)\b")
LOCAL_MEMORY = re.compile(r"\b(STL|LDL)\b")
REGISTERS = re.compile(r"\bREG:(\d+)")


@dataclass(frozen=True, slots=True)
class CompileTask:
    """One kernel for one architecture."""

    variant: CompileVariant
    architecture: int

    @property
    def label(self) -> str:
        """The task in a few words."""
        sizes = ", ".join(f"{name} {value}" for name, value in self.variant.sizes.items())
        words = f"{self.variant.kernel} {self.variant.function_name} {self.variant.dtype} sm_{self.architecture}"
        return f"{words}, {sizes}" if sizes else words


def compile_tasks(architectures: Sequence[int] = ARCHITECTURES) -> Iterator[CompileTask]:
    """Every default launch of every kernel."""
    for kernel in KERNELS:
        for architecture in architectures:
            for variant in kernel.variants(architecture):
                yield CompileTask(variant, architecture)


def compile_and_read(task: CompileTask) -> dict[str, Any]:
    """Compile, and read registers, spills, shared memory and tensor-core instructions from the cubin."""
    try:
        import triton
    except ImportError as error:
        raise KernelUnsupported(task.variant.kernel, "Triton is not installed", "install it, on Linux") from error
    if interpreted():
        raise KernelUnsupported(task.variant.kernel, "the interpreter compiles nothing", "unset TRITON_INTERPRET")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = task.variant
    names = list(variant.signature)
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if variant.signature[name].startswith("*") or name in variant.aligned
    }
    source = ASTSource(variant.function, dict(variant.signature), dict(variant.constants), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", task.architecture, 32), options=variant.launch.options())
    usage, assembly = _disassemble(compiled.asm["cubin"])
    registers = REGISTERS.search(usage)
    instructions: dict[str, int] = {}
    for name in TENSOR_CORE.findall(assembly):
        instructions[name] = instructions.get(name, 0) + 1
    return {
        "kernel": variant.kernel,
        "function": variant.function_name,
        "architecture": f"sm_{task.architecture}",
        "dtype": variant.dtype,
        "sizes": dict(variant.sizes),
        "blocks": dict(variant.launch.blocks),
        "num_warps": variant.launch.num_warps,
        "num_stages": variant.launch.num_stages,
        "registers": int(registers.group(1)) if registers else None,
        "spills": len(LOCAL_MEMORY.findall(assembly)),
        "shared_memory_bytes": int(compiled.metadata.shared),
        "tensor_core_instructions": instructions,
    }


def _disassemble(cubin: bytes) -> tuple[str, str]:
    import triton

    tools = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        runs = [
            subprocess.run([tools / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        ]
    return runs[0], runs[1]


def build_report(architectures: Sequence[int] = ARCHITECTURES) -> dict[str, Any]:
    """All entries, with the versions that made them."""
    return {
        "triton": importlib.metadata.version("triton"),
        "torch": importlib.metadata.version("torch"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernels": [compile_and_read(task) for task in compile_tasks(architectures)],
    }


def main(argv: Sequence[str]) -> int:
    """Print the report as a table, or as JSON."""
    parser = argparse.ArgumentParser(prog="python -m runners kernels report")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        report = build_report()
    except KernelUnsupported as refused:
        print(refused, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report))
        return 0
    print(
        f"{'kernel':<28} {'arch':<7} {'dtype':<5} {'sizes':<50} {'regs':>4} {'spills':>6} {'shared':>7}  tensor cores"
    )
    for entry in report["kernels"]:
        sizes = ", ".join(f"{name} {value}" for name, value in entry["sizes"].items())
        cores = ", ".join(f"{count} {name}" for name, count in entry["tensor_core_instructions"].items())
        name = f"{entry['kernel']} {entry['function']}"
        print(
            f"{name:<27} {entry['architecture']:<7} {entry['dtype']:<5} {sizes:<49} "
            f"{entry['registers']:>4} {entry['spills']:>6} {entry['shared_memory_bytes']:>7}  {cores}"
        )
    return 0
