
demoechon1"-
10.2.1.5
httpê?n1"z(02:	demo/echox