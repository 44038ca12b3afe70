"""CLIP's residual network in torch, written over a state dict of open_clip's names."""

import torch
import torch.nn.functional as F


def batch_norm(state, name, x, train):
    """In training the state's statistics are moved where they lie, as `torch.nn.BatchNorm2d` does."""
    running = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if train:
        state[f"{name}.num_batches_tracked"] += 1
    return F.batch_norm(x, *running, state[f"{name}.weight"], state[f"{name}.bias"], train, 0.1, 1e-5)


def bottleneck(state, name, x, stride, train):
    y = F.relu(batch_norm(state, f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"]), train))
    y = F.relu(batch_norm(state, f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), train))
    y = F.avg_pool2d(y, stride)
    y = batch_norm(state, f"{name}.bn3", F.conv2d(y, state[f"{name}.conv3.weight"]), train)
    if f"{name}.downsample.0.weight" in state:
        x = F.conv2d(F.avg_pool2d(x, stride), state[f"{name}.downsample.0.weight"])
        x = batch_norm(state, f"{name}.downsample.1", x, train)
    return F.relu(x + y)


def attention_pool(state, x, heads):
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + state["attnpool.positional_embedding"][:, None]
    q, k, v = (
        F.linear(each, state[f"attnpool.{name}_proj.weight"], state[f"attnpool.{name}_proj.bias"])
        .unflatten(-1, (heads, -1))
        .permute(1, 2, 0, 3)
        for each, name in ((tokens[:1], "q"), (tokens, "k"), (tokens, "v"))
    )
    joined = F.scaled_dot_product_attention(q, k, v).squeeze(2).flatten(1)
    return F.linear(joined, state["attnpool.c_proj.weight"], state["attnpool.c_proj.bias"])


def resnet(state, image, layers, heads, train):
    """image [B,C,H,W] → the grid after each stage, and the embedding [B,E] before it is normed."""
    x = image
    for index in (1, 2, 3):
        x = F.conv2d(x, state[f"conv{index}.weight"], stride=2 if index == 1 else 1, padding=1)
        x = F.relu(batch_norm(state, f"bn{index}", x, train))
    x, stages = F.avg_pool2d(x, 2), []
    for stage, depth in enumerate(layers, 1):
        for block in range(depth):
            x = bottleneck(state, f"layer{stage}.{block}", x, 2 if stage > 1 and block == 0 else 1, train)
        stages.append(x)
    return stages, attention_pool(state, x, heads)
