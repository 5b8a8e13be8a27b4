"""The page's section on the buffer: every number is that of its row, one timeline for each way to know."""

import reports
from pages import check_table

from minillm.show.page_buffer import BUFFERED, buffer_parts


def test_every_number_of_the_table_is_that_of_its_row():
    title = "What the buffer is worth, by how the neurons are known"
    assert check_table(reports.page(), title, reports.study().ways, BUFFERED) > 200


def test_there_is_a_timeline_for_each_way_to_know():
    parts = buffer_parts(reports.study())
    assert [f"One token, {name}." in parts["timelines"] for name in reports.study().timelines] == [True, True]
    assert parts["repeat"].count("<code>") == 3 and all(word in parts["repeat"] for word in ("replay", "simulate"))
