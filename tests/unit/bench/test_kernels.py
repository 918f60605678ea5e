"""Launches, waits and the host's work of a step, counted on what is known."""

import torch

from fitb.bench.kernels import host_ms, kernels_of

CPU = torch.device("cpu")


def test_operators_that_compute_are_counted_and_views_and_allocations_are_not():
    a, b = torch.randn(2, 64, 64)

    def work():
        product = a @ b.T  # a view, then one kernel
        torch.empty(3)
        return torch._foreach_add([a, b], [product, product])  # one for both

    assert {k: v for k, v in kernels_of(work, CPU).items() if k != "slowest"} == {
        "launches": 2,
        "waits": 0,
    }


def test_asking_a_tensor_for_its_value_is_a_wait():
    found = kernels_of(lambda: (float(torch.ones(3).sum()), torch.ones(3).nonzero()), CPU)
    assert found["waits"] == 2


def test_the_kernel_that_takes_longest_comes_first_with_its_calls():
    large, small = torch.randn(700, 700), torch.randn(3)
    slowest = kernels_of(lambda: [large @ large, large @ large, small + small], CPU)["slowest"]
    assert slowest[0]["name"] == "aten::mm" and slowest[0]["calls"] == 2
    assert [each["ms"] for each in slowest] == sorted((e["ms"] for e in slowest), reverse=True)


def test_the_hosts_work_is_told_apart_by_the_number_of_micro_batches():
    def seconds(micro_batches):
        return 0.002 + 0.003 * micro_batches

    assert host_ms(seconds, (1, 4)) == {"micro_batch": 3.0, "step": 2.0}
