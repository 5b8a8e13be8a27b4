"""What the tests of the training scripts share."""

import pytest
from scripts import load_script
from training_stories import STORIES


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer that the training script makes of STORIES."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/training_text.py").train_tokenizer(STORIES)
