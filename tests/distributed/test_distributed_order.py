"""What a product expects to open next is what an equal one opened, and no longer where it is misled."""

from hesscli.curvature.sharded.order import Order


def made(order, key, layers):
    """What was expected before each opening, and at the end."""
    order.begin(key)
    expected = []
    for layer in layers:
        expected.append(order.following())
        order.open(layer).sends = layer > 1
    expected.append(order.following())
    order.end()
    return expected


def test_the_second_of_two_equal_products_expects_what_the_first_opened():
    order = Order()
    assert made(order, "a", [1, 2, 3, 3, 2, 1]) == [None] * 7
    assert made(order, "a", [1, 2, 3, 3, 2, 1]) == [1, 2, 3, 3, 2, 1, None]
    assert made(order, "b", [1, 2]) == [None] * 3


def test_an_expectation_that_fails_is_given_up_for_that_product():
    order = Order()
    made(order, "a", [1, 2, 3, 2, 1])
    assert made(order, "a", [1, 3, 3, 2, 1]) == [1, 2, None, None, None, None]
    assert made(order, "a", [1, 3, 3, 2, 1, 1]) == [1, 3, 3, 2, 1, None, None]


def test_what_was_sent_is_known_as_long_as_the_order_is_the_same():
    order = Order()
    made(order, "a", [1, 2, 1])
    order.begin("a")
    assert [order.open(layer).sends for layer in (1, 2, 2)] == [False, True, None]


def test_a_product_that_did_not_end_is_not_learned_from():
    order = Order()
    order.begin("a")
    order.open(1)
    order.give_up()
    assert made(order, "a", [1, 2]) == [None] * 3
