"""Cases end in rows, and rows in a table that hides none."""

from lab.packages import LabError
from lab.run import Row, holds, known_cases, run_case, table


def row(**changed):
    row = Row("x86-a", "x86", "6.1", "QEMU", "x86-tsc", "guest", 0, (-7, -7), "debugfs", (-9, -5), "ticks", 4, "proved")
    for name, value in changed.items():
        setattr(row, name, value)
    return row


class Case:
    name, about = "x86-a", "a case"

    def __init__(self, result):
        self.result = result

    def run(self, lab):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_a_truth_that_was_bracketed_needs_something_in_common():
    assert holds((3, 5), (5, 9))
    assert not holds((3, 5), (6, 9))
    assert not holds(None, (6, 9))
    assert not holds((3, 5), None)


def test_the_table_has_every_row_with_its_reason(tmp_path):
    run_case(Case([row(ok=True), row(vcpu=1, reason="it is | not")]), tmp_path, tmp_path)

    text = table(tmp_path)

    assert "1 of 2 rows hold" in text
    assert (
        "| x86-a | 6.1 | QEMU | x86-tsc | guest, 0 | -7 | debugfs | -9..-5 ticks | 4 ns | proved |  | yes | 0 |" in text
    )
    assert "**no**: it is / not" in text


def test_a_case_that_breaks_is_a_row(tmp_path):
    (broken,) = run_case(Case(LabError("no console\nmore")), tmp_path, tmp_path)

    assert (broken.ok, broken.verdict, broken.reason) == (False, "none", "LabError: no console")
    assert "no console" in table(tmp_path)
    assert "LabError" in (tmp_path / "x86-a/error.txt").read_text()


def test_every_case_has_a_name_of_its_architecture_and_says_what_it_is_about():
    cases = known_cases()

    assert {"x86-plain"} <= set(cases)
    for name, case in cases.items():
        assert name == case.name
        assert name.split("-")[0] in ("x86", "arm64")
        assert case.about
