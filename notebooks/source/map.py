# %% [markdown]
# # The map
#
# Most neurons of a language model do almost nothing for any one token. If we knew which ones, we would not have to read
# their weights. And reading weights is what takes a language model most of its time. This course follows that idea from
# the first array to the last byte. It has ten notebooks, and all of them run on a laptop with the small model inside
# minillm.
#
# One picture shows everything. Text goes in at the left and comes out at the right. Below the feed-forward network is
# the topic of the course: a **policy** decides which neurons may be cut, a **predictor** says in advance which ones
# these will be, and a **buffer** loads only the weights that are needed.

# %%
from minillm.show.display import show
from minillm.show.map import you_are_here

show(you_are_here())

# %% [markdown]
# ## What each notebook answers, and where that is on the map
#
# - [00 · Shapes before models](00_shapes_before_models.ipynb):
#   How do I read an array's shape before I run the line? *(the small letters)*
# - [01 · From text to arrays](01_from_text_to_arrays.ipynb): How does a text become ids, and how does a file become
#   matrices? *(text, ids, checkpoint)*
# - [02 · One block, one token at a time](02_one_block_one_token_at_a_time.ipynb): What does a transformer block do,
#   step by step? *(one block)*
# - [03 · The whole model equals PyTorch](03_the_whole_model_equals_pytorch.ipynb): How do I know that the model is
#   right, and how do I find a bug? *(everything above the dashed frame)*
# - [04 · Generation and the KV cache](04_generation_and_the_kv_cache.ipynb): How does the model write text, and what
#   does it remember? *(KV cache, next token)*
# - [05 · Looking at activations](05_looking_at_activations.ipynb): Which neurons are active, and for which tokens?
#   *(gate, up, mid)*
# - [06 · Thresholds and what they cost](06_thresholds_and_what_they_cost.ipynb): What happens when small activations
#   are cut? *(policy, mask)*
# - [07 · Predicting before computing](07_predicting_before_computing.ipynb): How can we know the small activations
#   without computing them? *(predictor)*
# - [08 · Learning a predictor](08_learning_a_predictor.ipynb): Can a small network learn to predict them? *(predictor)*
# - [09 · The prefetch buffer](09_the_prefetch_buffer.ipynb): What does prediction gain when the weights are in slow
#   memory? *(buffer, slow memory)*
#
# Read the notebooks in this order, each from top to bottom. Every notebook has exercises. Here they are solved, and the
# solutions are folded. The folder [exercises](exercises) holds the same notebooks with empty functions for you to
# write. A `check` tells you how many cases are right.
#
# ## How to use a notebook
#
# Before you run a cell, predict what it will print. Change numbers: you cannot break anything. `show_source` shows the
# package's own code, so what you read is what runs. At the end of each notebook, put a checkpoint of your own into
# `CHECKPOINT = ""` and see whether the results hold there, too.
#
# Teachers find a plan of six sessions in [README.md](README.md).
