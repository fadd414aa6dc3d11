from scripts.measure_imports import MOST, shares


def line(spent: int, module: str) -> str:
    return f"import time: {spent:9} | {spent:10} |   {module}"


def test_parts_are_of_packages_and_of_large_ones_by_their_second_name() -> None:
    said = [line(60, "torch._inductor.ir"), line(20, "torch"), line(20, "yaml.reader"), "noise"]
    assert shares(said) == {"torch._inductor": 0.6, "torch": 0.2, "yaml": 0.2, "all others": 0.0}


def test_what_is_not_named_is_told_together() -> None:
    said = [line(1, f"p{number}") for number in range(2 * MOST)]
    assert shares(said)["all others"] == 0.496
