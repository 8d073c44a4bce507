"""The limits of each device: a launch beyond one is refused, one at the limit runs."""

import numpy as np
import ptxsim
import pytest

# threads of a block, shared memory of a block without and with opt-in, registers of an SM
OPT_IN = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_120": 99 * 1024}


def launch(build, name, grid, block, smem=0, profile="sm_80", opt_in=0, count=None):
    dev = ptxsim.Device(profile=profile, threads=2)
    kernel = ptxsim.load_ptx(build("limits").text).kernel(name)     # one without an opt-in of an earlier test
    if opt_in:
        ptxsim.set_smem_limit(kernel, opt_in)
    threads = int(np.prod(block)) * int(np.prod(grid))
    arguments = [dev.tensor(np.ones(96 * 32, np.float32), name="x")] if name == "many_registers" else []
    if name != "nothing":
        arguments.append(dev.empty((max(threads, 32),), np.float32, "out"))
    if name == "dynamic_shared":
        arguments.append(np.int32(count if count else smem // 4))
    return dev.launch(kernel, grid, block, arguments, smem=smem)


def refused(says, *args, **options):
    with pytest.raises(ptxsim.LaunchLimit, match=f"(?i){says}") as caught:
        launch(*args, **options)
    assert caught.value.kernel


def test_registers_times_threads(compile_case):
    refused("register", compile_case, "many_registers", 1, 1024)
    launch(compile_case, "many_registers", 1, 512)
    launch(compile_case, "few_registers", 1, 1024)


def test_dynamic_shared_memory_needs_the_attribute(compile_case):
    refused("shared", compile_case, "dynamic_shared", 1, 32, smem=48 * 1024 + 4)
    launch(compile_case, "dynamic_shared", 1, 32, smem=48 * 1024)
    launch(compile_case, "dynamic_shared", 1, 32, smem=48 * 1024 + 4, opt_in=48 * 1024 + 4)


@pytest.mark.parametrize("profile", OPT_IN)
def test_the_opt_in_limit_of_a_device(profile, compile_case):
    limit = OPT_IN[profile]
    launch(compile_case, "dynamic_shared", 1, 32, smem=limit, profile=profile, opt_in=limit)
    with pytest.raises(ptxsim.SimError, match="(?i)shared"):
        launch(compile_case, "dynamic_shared", 1, 32, smem=limit + 4, profile=profile, opt_in=limit + 4)


def test_reading_past_the_dynamic_shared_memory(compile_case):
    with pytest.raises(ptxsim.OutOfBounds):
        launch(compile_case, "dynamic_shared", 1, 32, smem=256, count=96)


@pytest.mark.parametrize("block", [1025, (32, 33), (1, 1, 65), 0], ids=str)
def test_threads_of_a_block(block, compile_case):
    refused("thread|block", compile_case, "nothing", 1, block)


@pytest.mark.parametrize("grid", [(1, 65536), (1, 1, 65536), 0], ids=str)
def test_blocks_of_a_grid(grid, compile_case):
    refused("grid", compile_case, "nothing", grid, 32)


def test_a_tall_grid_at_the_limit_runs(compile_case):
    launch(compile_case, "nothing", (1, 65535), 1)


def test_launch_bounds(compile_case):
    refused("thread|bound|maxntid", compile_case, "bounded", 1, 96)
    launch(compile_case, "bounded", 1, 64)


def test_static_shared_memory_counts(compile_case):
    launch(compile_case, "static_shared", 1, 32)
    refused("shared", compile_case, "static_shared", 1, 32, smem=2048)


def test_code_for_a_later_target_is_refused(compile_case):
    dev = ptxsim.Device(profile="sm_80")
    module = compile_case("limits", arch="sm_90")
    with pytest.raises(ptxsim.SimError, match="sm_90"):
        dev.launch(module.kernel("nothing"), 1, 32, [])


def test_an_unknown_profile_lists_what_exists():
    with pytest.raises((ValueError, ptxsim.SimError), match="sm_120"):
        ptxsim.Device(profile="sm_70")


def test_a_kernel_is_cut_out_by_its_braces():
    """ptxas is asked for one kernel alone. Those before it may have braces of inline assembly at a line's start."""
    from ptxsim.module import kernel_resources, one_kernel_text

    head = ".version 8.0\n.target sm_80\n.address_size 64\n"
    other = ".visible .entry other(.param .u64 p)\n{\n.reg .b32 %r;\n{\n.reg .b32 %r;\nmov.b32 %r, 1;\n}\nmov.b32 %r, 2;\nret;\n}\n"
    mine = ".visible .entry mine(.param .u64 p)\n{\nret;\n}\n"
    assert one_kernel_text(head + other + mine, "mine").split() == (head + mine).split()
    assert one_kernel_text(head + other + mine, "other").split() == (head + other).split()
    assert kernel_resources(head + other + mine, "mine", "sm_80")[0] > 1  # 1 is what an unknown kernel gets
