"""Scratch: run and script for a case."""
import json, os, sys, time
from pathlib import Path
import pytest
import tests.e2e.test_scripts_for_real as base
from engine.config.load import config_from_mapping
from engine.paths import LoratoryHome
WORDS="alpha beta gamma delta epsilon zeta eta theta".split()
def pairs(path,n=27):
    with path.open("w") as f:
        for k in range(n):
            a=" ".join(WORDS[(k*7+i)%8] for i in range(2+k%5)); b=" ".join(WORDS[(k*3+i)%8] for i in range(2+k%4))
            f.write(json.dumps({"prompt":f"Repeat {a} {k//2}","chosen":a,"rejected":b+" no"})+"\n")
    return str(path)
def ratings(path,n=27):
    with path.open("w") as f:
        for k in range(n):
            a=" ".join(WORDS[(k*7+i)%8] for i in range(2+k%5))
            f.write(json.dumps({"prompt":f"Repeat {a} {k}","completion":a,"label":k%3!=0})+"\n")
    return str(path)
CASES=json.loads(os.environ["E_CASES"])
@pytest.mark.parametrize("name",CASES)
def test_it(name,tiny_model_folder,tmp_path):
    training,adapter,more=CASES[name]
    home=LoratoryHome(tmp_path/"home")
    src=(ratings if training["objective"]=="kto" else pairs)(tmp_path/"rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORATORY_HOME",str(home.root))
        if adapter.pop("warm",None):
            start=config_from_mapping({"model":{"id":str(tiny_model_folder),"compute_dtype":"float32"},"adapter":adapter,"dataset":{"source":src},"training":{**base.SETTINGS,"objective":"orpo","max_steps":4,"learning_rate":5e-3}})
            (tmp_path/"s").mkdir()
            adapter["warm_start"]=base.trained(start,tmp_path/"s")
        config=config_from_mapping({"model":{"id":str(tiny_model_folder),"compute_dtype":"float32",**more},"adapter":adapter,
          "dataset":{"source":src,"eval_fraction":0.2},"training":{**base.SETTINGS,**training}})
        t=time.process_time()
        history,script=base.script_of(home,base.trained(config,tmp_path),tmp_path)
    log=base.executed(script)
    own=dict(zip(history.steps.steps.tolist(),history.steps.losses.tolist()))
    theirs={e["step"]:e["loss"] for e in log if "loss" in e}
    worst=max(abs(own[s]-theirs[s])/abs(own[s]) for s in own)
    ev={e["step"]:e["eval_loss"] for e in log if "eval_loss" in e}
    evs={p.step:p.eval_loss for p in history.evals}
    worste=max(abs(evs[s]-ev[s])/abs(evs[s]) for s in evs)
    print("\nRESULT",name,"steps",len(own),"first",own[1],"last",own[max(own)],"worst rel step",f"{worst:.2e}","eval",f"{worste:.2e}",flush=True)
    if worst>1e-3: print(own,theirs)
    base.assert_same_losses(history,log,within=1e-3)
