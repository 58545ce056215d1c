module tidegate/bench

go 1.26.0

require (
	github.com/hanwen/go-fuse/v2 v2.12.1
	golang.org/x/sys v0.49.0
	tidegate v0.0.0
)

require go.etcd.io/bbolt v1.5.0 // indirect

replace tidegate => ..
