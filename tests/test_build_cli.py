from __future__ import annotations
import time
def test_x(cli, warm, checkpoints):
    print(warm("build","flux","--model",checkpoints/"flux", "--dtype","float32"))
    t=time.time()
    print(warm("build","flux","--model",checkpoints/"flux-sharded", "--dtype","float32"))
    print(time.time()-t); t=time.time()
    print(warm("generate","flux","--prompt","x","--width",32,"--height",32,"--num-inference-steps",2))
    print(time.time()-t); t=time.time()
    print(cli.light("build","flux","--model",checkpoints/"flux", "--dtype","float32"))
    print(time.time()-t); t=time.time()
    print(cli.light("generate","flux","--help"))
    assert 0
