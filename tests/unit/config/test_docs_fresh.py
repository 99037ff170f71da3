"""The configuration page says what the program does."""

from tools.render_config_docs import PAGE, render


def test_the_configuration_page_is_what_the_schema_renders():
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make docs`"
