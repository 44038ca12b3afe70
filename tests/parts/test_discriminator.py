"""The critic of patches and the losses of two players against VQGAN's recorded file, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmm.objectives.adversarial import balance, deceit, hinge, logistic
from jmm.parts.discriminator import PatchDiscriminator
from tests.arrays import assert_close
from tests.goldens import golden_files, read_golden


def last(channels_first):
    return np.moveaxis(channels_first, 1, -1)


def variables_of(weights, layers):
    """Of their sequence: a convolution, then convolution, norm and activation by turns."""
    params, stats = {}, {}
    for layer, place in enumerate([0, *range(2, 3 * layers, 3), 3 * layers + 2]):
        kernel = weights[f"disc.main.{place}.weight"].transpose(2, 3, 1, 0)
        bias = weights.get(f"disc.main.{place}.bias")
        params[f"conv{layer}"] = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
        norm = f"disc.main.{place + 1}."
        if f"{norm}running_mean" in weights:
            params[f"norm{layer}"] = {"scale": weights[f"{norm}weight"], "bias": weights[f"{norm}bias"]}
            mean, var, count = (weights[norm + name] for name in ("running_mean", "running_var", "num_batches_tracked"))
            stats[f"norm{layer}"] = {"mean": mean, "var": var, "count": jnp.asarray(count, jnp.int32)}
    return {"params": params, "batch_stats": stats}


@pytest.mark.parametrize("path", golden_files("taming_vqgan"), ids=lambda path: path.stem)
def test_equals_vqgan(path):
    golden = read_golden(path)
    shape, expected = golden.config["disc"], golden.outputs
    critic = PatchDiscriminator(shape["ndf"], shape["n_layers"])
    variables = variables_of(golden.weights, shape["n_layers"])
    made = jax.eval_shape(lambda: critic.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, made)
    real, fake = last(golden.inputs["image"]), last(expected["rec"])

    @jax.jit
    def judge(image):
        return critic.apply(variables, image), critic.apply(variables, image, train=True, mutable=["batch_stats"])[0]

    (of_real, real_train), (of_fake, fake_train) = judge(real), judge(fake)
    for name, found in {"real": of_real, "fake": of_fake, "real_train": real_train, "fake_train": fake_train}.items():
        assert_close(found, expected[f"disc_logits_{name}"][:, 0])
    assert_close(hinge(of_real, of_fake), expected["hinge_d_loss"])
    assert_close(hinge(real_train, fake_train), expected["hinge_d_loss_train"])
    assert_close(logistic(of_real, of_fake), expected["vanilla_d_loss"])
    assert_close(deceit(of_fake), expected["g_loss"])


def test_losses_by_hand():
    real, made = jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.0])
    assert hinge(real, made) == (0.25 + 0.5) / 2
    assert deceit(made) == 1.5
    zero = jnp.zeros(3)
    np.testing.assert_allclose(logistic(zero, zero), np.log(2), rtol=1e-6)


def test_balance_by_hand():
    three, four = jnp.array([[3.0, 0.0]]), jnp.array([0.0, 4.0])
    np.testing.assert_allclose(balance(three, four), 3 / 4.0001, rtol=1e-6)
    assert balance(three, jnp.zeros(2)) == 1e4
    assert not jax.grad(lambda x: balance(x, four))(three).any()


def test_a_logit_sees_its_window_alone():
    """With three layers a window of 70 pixels, as in the paper."""
    critic = PatchDiscriminator(4)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((1, 96, 96, 3)), jnp.float32)
    variables = jax.jit(critic.init)(jax.random.key(0), image)
    seen = jax.jit(jax.grad(lambda x: critic.apply(variables, x)[0, 5, 5]))(image)[0].any(axis=-1)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == 70
