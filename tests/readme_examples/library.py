import jax

from polygrad_jax import open_run, preset, train

result = train(preset("smoke", "hopper"), "runs/library")
run = open_run(result.folder)  # which="best" for its best evaluation
contexts = run.contexts(100, jax.random.key(0))  # 100 states of its replay
imagined = run.imagine(contexts, jax.random.key(1))  # observations [100, H, O], actions [100, H, A], rewards [100, H]
mean, std = run.policy(imagined.observations)
print("std of standardised actions (1 is on-policy):", ((imagined.actions - mean) / std)[:, :-1].std())
