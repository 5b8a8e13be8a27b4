# %% [markdown]
# # The map
#
# Most neurons of a language model do almost nothing for any one token. If we knew which, their weights would not have
# to be read, and reading weights is what a language model spends its time on. This course follows that idea from the
# first array to the last byte: ten notebooks, every one of which runs on a laptop with the small model inside minillm.
#
# Everything is on one picture: text goes in at the left, comes out at the right, and below the feed-forward network is
# what the course is about: a **policy** says what may be cut, a **predictor** says so in advance, and a **buffer**
# fetches only what is needed.

# %%
from minillm.show.display import show
from minillm.show.map import you_are_here

show(you_are_here())

# %% [markdown]
# ## What each notebook answers, and where that is on the map
#
# - [00 · Shapes before models](00_shapes_before_models.ipynb):
#   How do I read an array's shape before I run the line? *(the small letters)*
# - [01 · From text to arrays](01_from_text_to_arrays.ipynb):
#   How do letters become ids, and a file of bytes matrices? *(text, ids, checkpoint)*
# - [02 · One block, one token at a time](02_one_block_one_token_at_a_time.ipynb):
#   What does a transformer's block do, step by step? *(one block)*
# - [03 · The whole model equals PyTorch](03_the_whole_model_equals_pytorch.ipynb):
#   How do I know that it is right, and where it is wrong? *(everything above the dashed frame)*
# - [04 · Generation and the KV cache](04_generation_and_the_kv_cache.ipynb):
#   How does it write, and what does it remember? *(KV cache, next token)*
# - [05 · Looking at activations](05_looking_at_activations.ipynb):
#   Which neurons do anything, and for whom? *(gate, up, mid)*
# - [06 · Thresholds and what they cost](06_thresholds_and_what_they_cost.ipynb):
#   What happens when the small ones are cut? *(policy, mask)*
# - [07 · Predicting before computing](07_predicting_before_computing.ipynb):
#   Who can know the small ones without computing them? *(predictor)*
# - [08 · Learning a predictor](08_learning_a_predictor.ipynb):
#   Can a small network learn to know it? *(predictor)*
# - [09 · The prefetch buffer](09_the_prefetch_buffer.ipynb):
#   What is it worth when the weights are far away? *(buffer, slow memory)*
#
# Each is to be read from top to bottom in its order, and each has exercises: in these notebooks they are solved (and
# folded), in the folder [exercises](exercises) the same notebooks wait for you to fill them in. A `check` says how
# far you are.
#
# ## How to use a notebook
#
# Run each cell, and predict what it prints before you do. Change numbers; nothing can break. `show_source` shows the
# package's own code: the notebooks have no second version of it, so what you read is what runs. At the end of each,
# put a checkpoint of your own into `CHECKPOINT = ""` and see whether what you have seen holds there, too.
#
# Teachers find a plan of six sessions in [README.md](README.md).
