"""No digit that the error does not support."""

import pytest

from hesscli.report.rounding import apart, significant, with_error

M = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (41.234, 0.87, "41.23 ± 0.87"),
        (41.234, 0.0996, "41.23 ± 0.10"),
        (41.234, 8.7, "41.2 ± 8.7"),
        (41.234, 87.0, "41 ± 87"),
        (123456, 2345, "123500 ± 2300"),
        (-50, 0.3, f"{M}50.00 ± 0.30"),
        (9.996, 0.995, "10.00 ± 0.99"),
        (0, 0.01, "0.000 ± 0.010"),
        (-0.001, 0.5, "0.00 ± 0.50"),
        (0.0001234, 1e-5, "0.000123 ± 0.000010"),
        (1.2345e-7, 1.2e-9, "(1.235 ± 0.012)e-07"),
        (-1e-9, 3e-10, f"({M}1.00 ± 0.30)e-09"),
        (123456789, 54321, "(1.23457 ± 0.00054)e+08"),
        (1e-9, 0.5, "0.00 ± 0.50"),
        (500.0, 1e-9, "500.00000 ± 1.0e-09"),
        (500.0, 0.0, "500.000 ± 0"),
        (0.0, 0.0, "0 ± 0"),
        (12.345, None, "12.3"),
        (12.345, float("inf"), "12.3"),
    ],
)
def test_value_and_error_end_at_the_same_place(value, error, text):
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 3, "0"),
        (999.9, 3, "1000"),
        (0.00099999, 3, "0.00100"),
        (-1e-9, 3, f"{M}1.00e-09"),
        (1e7, 2, "1.0e+07"),
        (654.3, 2, "650"),
        (1234.5, 2, "1200"),
    ],
)
def test_significant_digits(value, digits, text):
    assert significant(value, digits) == text


def test_columns_have_their_own_power_of_ten():
    assert apart(1.2345e-7, 1.2e-9) == ("1.235e-07", "1.2e-09")
    assert apart(41.234, 0.87) == ("41.23", "0.87")
    assert apart(500.0, 1e-9) == ("500.00000", "1.0e-09")
