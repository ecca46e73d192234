import jax
import jax.numpy as jnp
import numpy as np

from polygrad_jax import Policy, open_run


def gaussian(weights, obs):
    """Mean and std of Stable-Baselines3's MlpPolicy: two tanh layers, a linear mean, a std for each action."""
    for layer in ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"):
        obs = jnp.tanh(obs @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
    mean = obs @ weights["action_net.weight"].T + weights["action_net.bias"]
    return mean, jnp.broadcast_to(jnp.exp(weights["log_std"]), mean.shape)


policy = Policy(dict(np.load("ppo_hopper.npz")), gaussian)
run = open_run("runs/library")
contexts = run.contexts(100, jax.random.key(0))
state = run.settled(policy, contexts, jax.random.key(1))  # PolyGRAD adapts delta to this policy
imagined = run.imagine(contexts, jax.random.key(2), model_state=state, policy=policy)
mean, std = policy(imagined.observations)
standardised = ((imagined.actions - mean) / std)[:, :-1]
print("mean and std of standardised actions (0 and 1 are on-policy):", standardised.mean(), standardised.std())
