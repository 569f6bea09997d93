"""What is replaced in ContextForge is replaced whole."""

from types import SimpleNamespace

import pytest
from trunkline.compat.contextforge.installation import Replacement, put


class Fixed:
    """Its name cannot be replaced."""

    @property
    def name(self) -> str:
        return "stock"


def test_every_name_is_replaced() -> None:
    one, other = SimpleNamespace(a=1, b=2), SimpleNamespace(a=3)
    put([Replacement(one, "a", 10), Replacement(other, "a", 30)])
    assert (one.a, one.b, other.a) == (10, 2, 30)


@pytest.mark.parametrize("lacking", [Replacement(Fixed(), "name", 0), Replacement(SimpleNamespace(), "name", 0)])
def test_where_one_cannot_be_none_is(lacking: Replacement) -> None:
    one = SimpleNamespace(a=1)
    with pytest.raises(AttributeError):
        put([Replacement(one, "a", 10), Replacement(one, "a", 20), lacking])
    assert one.a == 1
