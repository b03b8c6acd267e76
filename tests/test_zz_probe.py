import time, json, collections
def test_probe(tiny_checkpoint, tiny_export, tiny_data, tiny_quantized, tiny_queries):
    from harness.inference import BusNERInference
    n=BusNERInference(tiny_export)
    q=BusNERInference(tiny_quantized)
    r=BusNERInference(tiny_checkpoint,use_onnx=False)
    c=collections.Counter(); ln=collections.Counter()
    for l in tiny_data.read_text().splitlines():
        d=json.loads(l)
        for s in d["spans"]: c[s[2]]+=1; ln[d["text"][s[0]:s[1]].count(" ")]+=1
    print(c,ln)
    print(sum(a==b for a,b in zip(q.batch_extract(tiny_queries),r.batch_extract(tiny_queries))),len(tiny_queries))
    import numpy as np
    from harness.tagging import tag
    a=tag(r._model,tiny_queries); b=tag(n._model,tiny_queries); i=tag(q._model,tiny_queries)
    print(max(abs(x.logits-y.logits).max() for x,y in zip(a,b)), max(abs(x.logits-y.logits).max() for x,y in zip(a,i)))
    print(np.sort(np.concatenate([x.margins for x in a]))[:10], np.concatenate([x.logits for x in a]).std())
    print(q._model.variant, tiny_export, [p.name for p in tiny_quantized.iterdir()])
    print(n.extract_detailed("xyz\u0301 café Ünï bus from goa"))
