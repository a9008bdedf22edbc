
demoecho‡€"
httpP"8080*
hawser.io/globaltrue08B	ClusterIPJ
appechoR
172.18.0.5X
b
appechohx