package usererr

// Code names an error for good: it stands in logs, links and run books, and is
// never given to another error.
type Code string

// The codes, by area: E10 faas.yml, E11 job and commands, E12 bundle and
// object store, E13 build, E14 deploy, E19 ourselves.
const (
	CodeProjectFile    Code = "E1001"
	CodeProjectMissing Code = "E1002"
	CodeProjectRefused Code = "E1003"
	CodeTestFailed     Code = "E1004"

	CodeUsage       Code = "E1101"
	CodeJobEnv      Code = "E1102"
	CodeUnable      Code = "E1103"
	CodeStage       Code = "E1104"
	CodeScript      Code = "E1105"
	CodeWorkFiles   Code = "E1106"
	CodeCancelled   Code = "E1107"
	CodeTimeout     Code = "E1108"
	CodeDiskFull    Code = "E1109"
	CodeEnvironment Code = "E1110"

	CodeStoreUnavailable Code = "E1201"
	CodeStoreDenied      Code = "E1202"
	CodeUntrusted        Code = "E1203"
	CodeNoBundle         Code = "E1204"
	CodeRevoked          Code = "E1205"
	CodeRunnerBlob       Code = "E1206"
	CodeBundleContent    Code = "E1207"
	CodePublish          Code = "E1208"
	CodeNotFound         Code = "E1209"
	CodeStale            Code = "E1210"

	CodeBuildInput          Code = "E1301"
	CodeRegistryUnavailable Code = "E1302"
	CodeRegistryDenied      Code = "E1303"
	CodeNoDigest            Code = "E1304"
	CodeHandlerMissing      Code = "E1305"
	CodeNoBase              Code = "E1306"

	CodeDeployFailed      Code = "E1401"
	CodeTargetUnavailable Code = "E1402"
	CodeForeignObject     Code = "E1403"
	CodeSuperseded        Code = "E1404"
	CodeHeld              Code = "E1405"
	CodeRestored          Code = "E1406"
	CodeLocked            Code = "E1407"
	CodeRunFailed         Code = "E1408"

	CodeInternal Code = "E1901"
)

type entry struct {
	class      Class
	what, next string
}

// table is every message's fixed part, in one place so that a second language
// is a second table.
var table = map[Code]entry{
	CodeProjectFile:    {Project, "read faas.yml", "correct the lines named above"},
	CodeProjectMissing: {Project, "find faas.yml", "add a faas.yml at the repository's root; docs/first-function.md shows the smallest one"},
	CodeProjectRefused: {Project, "plan what faas.yml asks for", "remove or change the fields named above"},
	CodeTestFailed:     {Project, "run the project's tests", "read the test output above and correct the code"},

	CodeUsage:       {Usage, "understand the command", "run it with --help"},
	CodeJobEnv:      {Config, "read the CI job environment", "run this command from a job that includes ci-templates/faas.gitlab-ci.yml"},
	CodeUnable:      {Unable, "run on this machine", ""},
	CodeStage:       {Config, "read the stage definition", "correct the bundle and publish it again"},
	CodeScript:      {Project, "run a script of the stage", "read the script's output above"},
	CodeWorkFiles:   {Superseded, "read what an earlier job left in .faas", "start a new pipeline: its first job makes the files again"},
	CodeCancelled:   {Cancelled, "finish before the job was cancelled", "run the job again; it continues safely"},
	CodeTimeout:     {External, "finish in time", "run the job again; if it keeps happening, raise the job's time limit"},
	CodeDiskFull:    {External, "write to disk", "free space on the runner, or choose a runner with more, and run the job again"},
	CodeEnvironment: {Project, "choose the environment", ""},

	CodeStoreUnavailable: {External, "reach the platform's object store", "run the job again later; if it keeps failing, tell the platform team"},
	CodeStoreDenied:      {Config, "use the platform's object store", "check key, secret and the bucket's policy"},
	CodeUntrusted:        {Config, "verify the platform bundle", "do not work around this; tell the platform team"},
	CodeNoBundle:         {Config, "choose a platform bundle", "publish a bundle to the channel"},
	CodeRevoked:          {Superseded, "use the pipeline's platform bundle", "start a new pipeline: this one's bundle was revoked"},
	CodeRunnerBlob:       {Config, "start the stage runner that the bundle names", "publish the bundle again with a runner blob for this platform"},
	CodeBundleContent:    {Config, "read the platform bundle", "correct the bundle and publish it again"},
	CodePublish:          {Config, "publish the platform bundle", ""},
	CodeStale:            {Config, "deploy under a platform bundle that nobody confirmed lately", "tell the platform team to publish, or to refresh the channel"},
	CodeNotFound:         {Config, "read from the object store", "check the address, the bucket and the prefix"},

	CodeBuildInput:          {Project, "build the images", ""},
	CodeRegistryUnavailable: {External, "reach the image registry", "run the job again later; if it keeps failing, tell the platform team"},
	CodeRegistryDenied:      {Config, "log in to the image registry", "check the registry's user and password (CI_REGISTRY_USER, CI_REGISTRY_PASSWORD)"},
	CodeNoDigest:            {Config, "find the digest of every planned image", "the build stage must write one digest for each image to $FAAS_DIGESTS/<image>"},
	CodeNoBase:              {Config, "find the runtime's base image in the registry", "push the platform's images: faasctl image push base/… build/… --registry …"},
	CodeHandlerMissing:      {Project, "find the functions' handlers", "correct functions.<name>.handler in faas.yml, or add the file"},

	CodeDeployFailed:      {Project, "deploy the release", "read the function's last log lines above; the previous release still serves"},
	CodeTargetUnavailable: {External, "reach the cluster", "run the job again later; if it keeps failing, tell the platform team"},
	CodeForeignObject:     {Config, "own the service's objects", "choose another service name, or ask the platform team to move the owner"},
	CodeSuperseded:        {Superseded, "deploy this pipeline's release", "start a new pipeline from the commit you want"},
	CodeHeld:              {Held, "deploy while the release is held", "run: faas release resume"},
	CodeRestored:          {Restored, "finish the rollout", "the previous release serves again; correct the cause and start a new pipeline"},
	CodeLocked:            {External, "take the release lock", "another job is deploying this service; run this job again when it has ended"},
	CodeRunFailed:         {Project, "run the job to its end", "read its last lines above"},

	CodeInternal: {Internal, "finish the job", "this is a bug in Kuroko; please report it with the job's log"},
}

// Codes returns every code there is, for the documentation and its test.
func Codes() map[Code]Entry {
	all := make(map[Code]Entry, len(table))
	for c, e := range table {
		all[c] = Entry{Class: e.class, What: e.what, Next: e.next}
	}
	return all
}

// Entry is the fixed part of a message.
type Entry struct {
	Class      Class
	What, Next string
}
