import sys

import jax

from polygrad_jax.analysis.opened_run import imagine, open_finished

run = open_finished(sys.argv[1])  # the folder of a run; which="best" for its best evaluation
context_key, imagine_key = jax.random.split(jax.random.key(0))
contexts = run.contexts(100, context_key)  # 100 states of its replay
imagined = imagine(run, contexts, imagine_key)  # observations [100, H, O], actions [100, H, A], rewards [100, H], ...
mean, std = run.policy_apply(run.actor, imagined.observations)
print("imagined rewards per step:", imagined.rewards.mean(axis=0))
print("std of standardised actions (1 is on-policy):", ((imagined.actions - mean) / std)[:, :-1].std())
