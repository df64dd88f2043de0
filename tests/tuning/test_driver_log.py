"""What the driver says beside the search goes into a file."""

import logging
import warnings

import pytest

from maskpro.tuning.driver_log import DRIVER_LOG, driver_log


def test_rays_log_and_warnings_go_into_the_file_and_nowhere_else(tmp_path, capsys):
    ray_logger = logging.getLogger("ray")
    handlers, show = ray_logger.handlers, warnings.showwarning
    with warnings.catch_warnings(), driver_log(tmp_path):
        warnings.simplefilter("always")
        assert not (tmp_path / DRIVER_LOG).exists()
        logging.getLogger("ray.tune").error("Trial task failed")
        warnings.warn("old API", stacklevel=1)
    content = (tmp_path / DRIVER_LOG).read_text()
    assert "ERROR ray.tune: Trial task failed\n" in content
    assert "WARNING py.warnings: " in content
    assert "old API" in content
    assert capsys.readouterr() == ("", "")
    assert (ray_logger.handlers, warnings.showwarning) == (handlers, show)


def test_all_is_as_before_after_an_error(tmp_path):
    ray_logger = logging.getLogger("ray")
    handlers = ray_logger.handlers
    with pytest.raises(KeyError), driver_log(tmp_path):
        raise KeyError
    assert ray_logger.handlers is handlers
    assert list(tmp_path.iterdir()) == []
