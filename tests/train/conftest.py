import pytest

from tests.support import shared_programs


@pytest.fixture(scope="module", autouse=True)
def programs_of_this_file():
    """The runs of a file that have the same method compile their programs once."""
    with shared_programs():
        yield
