"""A simulator of the HIVM that Ascend's compiler emits: one Cube core and its two Vector cores.

HIVM is what bishengir-compile makes of a kernel before CANN's closed code generator: buffers have
addresses, operations have pipes, and every order between pipes or cores is an explicit flag. So it
can be executed address by address, and each missing or wrong flag shows. parser reads the text,
memory holds the buffers, library says what each operation computes, reads and writes, machine runs
the pipes, hazards orders accesses by vector clocks, timing counts cycles from a table.

    python -m tools.hivm run FOLDER     # each variant that tools/ascend/compile_tiled.py left there
    python -m tools.hivm report FOLDER  # docs/ascend-simulated.md and its pictures
"""
