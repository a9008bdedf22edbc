
n1west *down2up:n2:n3x