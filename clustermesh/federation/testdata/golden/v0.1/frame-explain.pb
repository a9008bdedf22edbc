R?
k8s:app=echo10.2.1.5"
k8s:app=client10.1.1.2(0ê?